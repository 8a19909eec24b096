"""Compares the throughput of gradcam batch (local, on Ray) with the bare graph and a tutorial.

    bare graph   the job's compiled graph on decoded images, in its fastest batch size
    decoding     reading, decoding and resizing alone, on as many threads as there are cores
    local        gradcam batch from files to shards, with a warm engine
    ray          the same on Ray Data: the time from the first row on, plus that of decoding, since
                 Ray decodes ahead while its engines start
    ray, whole   the whole job on Ray, with the start and end of Ray and of its engines
    tutorial     a loop over the first images: load_img, predict, a tape, np.save

All but the last take turns over the same images, and each round gives ratios. Decoding and the
graph share the cores, so no job can be faster than decoding and graph one after the other on all
cores: the ratio to that bound is reported, too.

Usage: PYTHONPATH=benchmarks python benchmarks/batch.py FOLDER [--count N] [--rounds N] [--no-ray]
       [--model M] [--weights W] [--compiler C] [--compute-streams N]
       [--output FILE]
"""

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import numpy as np

from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.job import Job
from gradcam_server.batch.job import run as run_job
from gradcam_server.batch.local import LocalStage
from gradcam_server.batch.model import BATCH_SIZES
from gradcam_server.batch.schema import Row
from gradcam_server.batch.sources.base import Item, Source
from gradcam_server.batch.sources.opening import open_source
from gradcam_server.batch.stage import Stage
from gradcam_server.batch.throughput import ThroughputEngine
from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem, GraphTarget, by_rank
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.requests import Method, ResizeMode, ScoreType
from gradcam_server.graphs.executable import CompiledGraph
from gradcam_server.pipeline.pipeline import load

TUTORIAL_IMAGES = 50
_PAUSE_S = 8.0
_RAY = "ray, whole"


@dataclass
class Timed:
    """Receives a job's progress, and stores the times of its rows."""

    times: list[float] = field(default_factory=list)

    def begin(self, total: int, finished: int, errors: int) -> None:
        """The job begins."""

    def advance(self, row: Row) -> None:  # noqa: ARG002 - the time is what counts
        """An image is done."""
        self.times.append(perf_counter())


def bare_graph(config: ServeConfig) -> CompiledGraph:
    """Compiles the graph that a job uses."""

    async def compile_it() -> CompiledGraph:
        engine = ThroughputEngine(config)
        model = engine.catalog.models[0]
        key = engine.catalog.graph_key(
            model, (model.default_layer,), Method.GRAD_CAM, ScoreType.LOGIT, 1
        )
        return await engine.graph(key)

    return asyncio.run(compile_it())


def run_bare(graph: CompiledGraph, items: list[GraphItem]) -> float:
    size = graph.max_batch_size
    started = perf_counter()
    for at in range(0, len(items), size):
        graph.run(items[at : at + size], size)
    return perf_counter() - started


def fitted(item: Item, config: ServeConfig, size: tuple[int, int]) -> GraphItem:
    mode = ResizeMode.STRETCH
    image = load(item.load(), config, size, mode, is_whole_needed=False)
    return GraphItem(image.fitted, [GraphTarget(by_rank(0))])


def decode_all(
    source: Source, count: int, config: ServeConfig, size: tuple[int, int]
) -> tuple[list[GraphItem], float]:
    started = perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        made = list(threads.map(lambda item: fitted(item, config, size), source.read(0, count)))
    return made, perf_counter() - started


def time_job(
    job: Callable[[Path], Job],
    open_stage: Callable[[], AbstractContextManager[Stage]],
) -> tuple[float, float]:
    """Returns the seconds of a job, and those it would take at its rate after the first row."""
    report = Timed()
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        run_job(job(Path(folder)), open_stage, report)
        ended = perf_counter()
    # Rows that arrive together with the first row were computed before it.
    first = sum(at - report.times[0] < 0.2 for at in report.times)
    late = (
        (report.times[-1] - report.times[first - 1])
        * len(report.times)
        / (len(report.times) - first)
    )
    return ended - started, late


def tutorial(source: Source, config: ServeConfig) -> float:
    """Returns the median seconds per image of the tutorials' loop."""
    from keras.utils import img_to_array, load_img

    from gradcam_server.bench.subjects import Tutorial

    (spec,) = model_specs(config)
    run = Tutorial(spec, predicts=True).build(1)
    paths: Iterator[Item] = islice(source.read(0, len(source)), TUTORIAL_IMAGES)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for item in paths:
            started = perf_counter()
            image = img_to_array(load_img(item.path, target_size=(224, 224)))
            answer = run(image[None].astype(np.uint8))
            np.save(Path(folder) / "map.npy", answer.maps)
            seconds.append(perf_counter() - started)
    return float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--compiler", type=Compiler, default=Compiler.OPENVINO)
    parser.add_argument("--compute-streams", type=int, default=1, help="of the jobs")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    config = ServeConfig(
        model=(arguments.model,),
        weights=(arguments.weights,),
        compiler=arguments.compiler,
        batch_sizes=BATCH_SIZES,
        max_targets=1,
        compute_streams=arguments.compute_streams,
    )
    report = measure(arguments, config, open_source(arguments.folder))
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


def measure(arguments: argparse.Namespace, config: ServeConfig, source: Source) -> dict[str, Any]:
    cv2.setNumThreads(1)
    count, options = min(arguments.count, len(source)), ExplainOptions()

    def job(folder: Path) -> Job:
        return Job(source, arguments.folder, folder, options, limit=count)

    with ExitStack() as stack:
        local = stack.enter_context(LocalStage(config, options))
        graph, size = bare_graph(config), local.input_size
        items, _ = decode_all(source, count, config, size)
        late: list[float] = []
        subjects: dict[str, Callable[[], float]] = {
            "bare graph": lambda: run_bare(graph, items),
            "decoding": lambda: decode_all(source, count, config, size)[1],
            "local": lambda: time_job(job, lambda: nullcontext(local))[0],
        }
        if not arguments.no_ray:
            from gradcam_server.batch.ray_data import RayStage

            def run_ray() -> float:
                # Ray ends between rounds: its idle processes would slow down the other subjects.
                whole, from_first_row = time_job(job, lambda: RayStage(config, options))
                late.append(from_first_row)
                return whole

            subjects[_RAY] = run_ray
        run_bare(graph, items[:64])
        list(local.rows(source, [(0, 64)]))  # compiles
        seconds: dict[str, list[float]] = {name: [] for name in subjects}
        cpu_ms: dict[str, list[float]] = {name: [] for name in subjects}
        names = list(subjects)
        for number in range(arguments.rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                cpu = process_time()
                seconds[name].append(subjects[name]())
                cpu_ms[name].append((process_time() - cpu) / count * 1e3)
                print(
                    f"round {number}: {name}: {count / seconds[name][-1]:.1f} images/s", flush=True
                )
                # Ray's processes end slowly, and use the same cores.
                time.sleep(_PAUSE_S if name == _RAY else 0.5)
        batch_size = graph.max_batch_size
    if late:
        seconds["ray"] = [sum(both) for both in zip(late, seconds["decoding"], strict=True)]
        cpu_ms["ray"] = cpu_ms[_RAY]
    rates = {name: count / np.array(times) for name, times in seconds.items()}
    possible = 1 / (1 / rates["bare graph"] + 1 / rates["decoding"])
    return {
        "model": arguments.model,
        "weights": arguments.weights,
        "compiler": str(arguments.compiler),
        "compute_streams": arguments.compute_streams,
        "batch_size": batch_size,
        "images": count,
        "rounds": arguments.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "subjects": {
            name: {
                "images_per_s_median": float(np.median(rate)),
                "ratio_to_bare_graph_quartiles": quartiles(rate / rates["bare graph"]),
                "ratio_to_possible_quartiles": quartiles(rate / possible),
                # More stable than rates on a busy machine; that of Ray leaves out its processes.
                "cpu_ms_per_image_median": float(np.median(cpu_ms[name])),
            }
            for name, rate in rates.items()
        },
        "tutorial": {"images": TUTORIAL_IMAGES, "images_per_s": 1 / tutorial(source, config)},
    }


def quartiles(values: Any) -> list[float]:
    return [float(value) for value in np.percentile(values, [25, 50, 75])]


if __name__ == "__main__":
    main()
