"""Measures the graph of an export alone on the whole CPU, in streams, and on both at the same time.

Executables take turns at batch size 1: on an idle machine, beside a thread that works as decoding
does, and beside a busy process (nice 10). Ratios are to the whole CPU of the same round. CPU time
beyond that of the streams is spent waiting for other threads.

Usage: PYTHONPATH=benchmarks python benchmarks/stream_graphs.py EXPORT [--rounds N] [--seconds S]
       [--output FILE]
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

from gradcam_server.bench.interleave import interleave
from gradcam_server.bench.results import Machine
from gradcam_server.exports.manifest import read_manifest
from gradcam_server.graphs.compilers.openvino_runtime import CpuModel, read_model
from gradcam_server.graphs.compilers.streams import working_beside
from gradcam_server.graphs.executable import Array, Executable
from gradcam_server.graphs.threads import compute_threads
from gradcam_server.graphs.timing import noise_batch
from neighbour import neighbour
from streams import Figures, summarise

BESIDE: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "idle": nullcontext,
    "decoding": working_beside,
    "process": partial(neighbour, busy=True),
}


def measure(executables: Sequence[Executable], batch: Sequence[Array], seconds: float) -> Figures:
    """Runs batches in all executables at the same time."""

    def run(executable: Executable) -> float:
        count, began = 0, perf_counter()
        while perf_counter() < began + seconds:
            executable(*batch)
            count += 1
        counts.append(count)
        return count / (perf_counter() - began)

    counts: list[int] = []
    began_s = process_time()
    with ThreadPoolExecutor(len(executables)) as threads:
        images_per_s = sum(threads.map(run, executables))
    return {"images_per_s": images_per_s, "cpu_ms": (process_time() - began_s) / sum(counts) * 1e3}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5)
    output = Path("benchmarks/results/stream_graphs.json")
    parser.add_argument("--output", type=Path, default=output)
    arguments = parser.parse_args()
    machine = Machine.here()
    manifest = read_manifest(arguments.export)
    graph = manifest.graphs[0]
    read = read_model(arguments.export / graph.file, arguments.export / graph.weights_file)
    model = CpuModel(read, graph.outputs, manifest.precision)
    streams = model.divide(compute_threads())
    batch = noise_batch(graph.key, manifest.input_size, 1, 1)
    executables = {
        "whole CPU": [model.whole],
        f"{len(streams)} streams": streams,
        "whole CPU and a stream": [model.whole, streams[0]],
    }
    rows = []
    for beside, context in BESIDE.items():
        subjects = {
            name: partial(measure, of_name, batch, arguments.seconds)
            for name, of_name in executables.items()
        }
        for subject in subjects.values():
            subject()  # warms up
        with context():
            found = interleave(subjects, arguments.rounds)
        for name, values in found.items():
            rows.append(row := summarise(f"{name}, {beside}", values, found["whole CPU"]))
            rate, ratio, cpu = (
                row[key] for key in ("images_per_s", "images_per_s_ratio", "cpu_ms")
            )
            print(
                f"{row['name']}: {rate['median']:.1f} images/s, ratio {ratio['median']:.2f} "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}), CPU {cpu['median']:.1f} ms"
            )
    results = {"machine": asdict(machine), "export": arguments.export.name, "rows": rows}
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
