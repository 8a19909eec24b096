"""Explains images on a Ray cluster: Ray Data moves them, and the engines are a pool of its actors.

    ranges -> read and decode (tasks on CPUs) -> engines (actors) -> rows, in order, to the caller

Between the two go images of the model's input size, 150 KB at 224 x 224; with overlays the files
themselves, because those are drawn on the whole image. Ray Data schedules, bounds what is under
way, starts actors again that die and gives their tasks to others; nothing here does.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError

from gradcam_server.batch.errors import StageError
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.local import Loaded, LocalStage, load_item
from gradcam_server.batch.schema import Row, error_row, from_columns, to_batch
from gradcam_server.batch.sources.base import Item, Source
from gradcam_server.batch.stage import Ranges
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.requests import RawImage
from gradcam_server.errors import ExplanationServerError

logger = logging.getLogger(__name__)

# Read and decoded by one task; of small jobs so many that each CPU has some.
_TASK_IMAGES = 256
_TASKS_PER_CPU = 8
_TASK_BYTES = 256 * 1024 * 1024
_BATCH_IMAGES = 64  # of one call of an engine
# One is computed while the next is taken out of its message.
_CALLS_AT_ONCE = 2
_CPUS_PER_ACTOR = 8
_MAX_BLOCKS = 2000
# What Ray reserves for an engine is little, whatever it computes with: when a node is lost, its
# engines find room on the others, and leave the CPUs to the tasks that read for them. It is not
# none, which Ray would also place on nodes that offer no CPU, as heads of clusters often do.
_ENGINE_CPUS = 0.01
_LOOK_AT_GPUS_S = 10.0

_IMAGES = pa.schema(
    [
        ("index", pa.int64()),
        ("id", pa.string()),
        ("path", pa.string()),
        ("error", pa.string()),
        ("data", pa.large_binary()),
        ("height", pa.int32()),  # of the original, where the data are pixels
        ("width", pa.int32()),
    ]
)


class RayStage:
    """A pool of engines on a Ray cluster.

    Args:
        config: The settings of each engine.
        options: What is asked of each image.
        address: The cluster's; None starts one on this machine, unless Ray runs already.
        actors: Engines; None is one for each GPU, or for each 8 CPUs.

    Raises:
        StageError: There is no such cluster, or the model cannot be loaded on it.
    """

    def __init__(
        self,
        config: ServeConfig,
        options: ExplainOptions,
        address: str | None = None,
        actors: int | None = None,
    ) -> None:
        self._options, self._folder = options, str(Path.cwd())
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _start(address)
        try:
            resources = ray.cluster_resources()
            gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
            self._cpus = cpus
            self._actors = actors or gpus or max(1, cpus // _CPUS_PER_ACTOR)
            self._gpus = min(1.0, gpus / self._actors)
            if not gpus and config.compute_threads is None:
                threads = max(1, cpus // self._actors)
                config = replace(config, compute_threads=threads)
            self._config = config
            with _errors_of_ray():
                looking = _look_at_model.remote(config, options, self._folder)
                self._input_size = ray.get(looking)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the cluster, and stops it if it was started for this."""
        if self._owns_ray:
            ray.shutdown()

    def rows(self, source: Source, ranges: Ranges) -> Iterator[Row]:
        """Yields the rows of ranges, as ``Stage`` says."""
        count = sum(stop - start for start, stop in ranges)
        size = max(1, min(_TASK_IMAGES, count // (_TASKS_PER_CPU * self._cpus)))
        chunks = [
            {"start": at, "stop": min(at + size, stop)}
            for start, stop in ranges
            for at in range(start, stop, size)
        ]
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        images = ray.data.from_items(
            chunks, override_num_blocks=min(len(chunks), _MAX_BLOCKS)
        ).map_batches(
            _read,
            fn_args=(
                *(ray.put(source), self._config, self._options, self._input_size),
                self._folder,
            ),
            batch_size=1,
            batch_format="pyarrow",
            # Engines ask for none: tasks that are alike Ray would run within the engines.
            memory=_TASK_BYTES,
        )
        # Actors that die are started again, and their tasks go to others, as often as it takes:
        # Ray Data's default (max_restarts and max_task_retries are -1).
        rows = images.map_batches(
            _Engine,
            fn_constructor_args=(self._config, self._options, self._folder),
            batch_size=min(_BATCH_IMAGES, size),
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=self._actors,
                max_concurrent_calls_per_actor=_CALLS_AT_ONCE,
                max_tasks_in_flight_per_actor=2 * _CALLS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=_ENGINE_CPUS,
            num_gpus=self._gpus,
        )
        with _errors_of_ray(), _told_of_lost_gpus(self._gpus * self._actors):
            for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from from_columns(table)


def _start(address: str | None) -> None:
    # What it would tell is progress, which the caller shows, or comes as an error, too.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if address is None and not os.environ.get("RAY_ADDRESS"):
        address = "local"  # not whichever cluster was last started on this machine
    try:
        ray.init(
            address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=False if address == "local" else None,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StageError(
            f"--ray-address {address}: there is no Ray cluster ({error}); start one with "
            "ray start --head"
        ) from error


@contextmanager
def _errors_of_ray() -> Iterator[None]:
    """Turns errors of tasks and actors into ours."""
    try:
        yield
    except RayError as error:
        cause: BaseException | None = getattr(error, "cause", None)
        while cause is not None and not isinstance(cause, ExplanationServerError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise StageError(str(cause or error)) from error


@contextmanager
def _told_of_lost_gpus(needed: float, interval_s: float = _LOOK_AT_GPUS_S) -> Iterator[None]:
    """Until this is left, says when the cluster has fewer GPUs than the engines need.

    Ray Data gives the images that an engine had in work to no other: they wait until the engine
    finds a free GPU, at the latest one of an engine that has nothing left to do.

    Args:
        needed: GPUs of all engines.
        interval_s: How often to look, in seconds.
    """
    left = threading.Event()

    def look() -> None:
        is_short = False
        while not left.wait(interval_s):
            gpus = ray.cluster_resources().get("GPU", 0)
            # Fractions of GPUs do not add up exactly.
            if is_short == (gpus < needed - 1e-3):
                continue
            is_short = not is_short
            if is_short:
                logger.warning(
                    "The engines need %g GPUs, and the cluster has %g left: images that lost "
                    "engines had in work wait for a free GPU, and their shards with them. A job "
                    "that is stopped and started again does not wait.",
                    *(needed, gpus),
                )
            else:
                logger.warning("The cluster has %g GPUs again", gpus)

    looking = threading.Thread(target=look, name="look at GPUs", daemon=True)
    looking.start()
    try:
        yield
    finally:
        left.set()
        looking.join()


# Its process ends with it: it would keep a model in memory.
@ray.remote(max_calls=1)
def _look_at_model(config: ServeConfig, options: ExplainOptions, folder: str) -> tuple[int, int]:
    """Returns the model's input size, after having looked for the layer and the class."""
    _go_to(folder)
    # It computes nothing, and has no GPU.
    with LocalStage(replace(config, batch_sizes=(1,), device=()), options) as stage:
        return stage.input_size


def _go_to(folder: str) -> None:
    """Gives relative paths the meaning that they have where the job was started."""
    if Path(folder).is_dir():
        os.chdir(folder)


def _read(
    chunks: pa.Table,
    kept: "ray.ObjectRef[Source]",
    config: ServeConfig,
    options: ExplainOptions,
    input_size: tuple[int, int],
    folder: str,
) -> Iterator[pa.Table]:
    """Reads and decodes ranges of a source, which the cluster keeps once."""
    import cv2

    _go_to(folder)
    source: Source = ray.get(kept)
    cv2.setNumThreads(1)  # a task has one CPU
    pending: list[dict[str, Any]] = []
    for chunk in chunks.to_pylist():
        for item in source.read(chunk["start"], chunk["stop"]):
            pending.append(_decode(item, config, options, input_size))
            if len(pending) == _BATCH_IMAGES:
                yield pa.Table.from_pylist(pending, _IMAGES)
                pending.clear()
    if pending:
        yield pa.Table.from_pylist(pending, _IMAGES)


def _decode(
    item: Item, config: ServeConfig, options: ExplainOptions, input_size: tuple[int, int]
) -> dict[str, Any]:
    row: dict[str, Any] = {"index": item.index, "id": item.id, "path": item.path}
    loaded = load_item(item, config, options, input_size)
    if isinstance(loaded, Row):
        return {**row, "error": loaded.error}
    if isinstance(loaded.image, bytes):
        return {**row, "data": loaded.image}
    assert loaded.size is not None
    height, width = loaded.size
    return {**row, "data": loaded.image.data, "height": height, "width": width}


class _Engine:
    """An actor that holds an engine."""

    def __init__(self, config: ServeConfig, options: ExplainOptions, folder: str) -> None:
        _go_to(folder)
        # For NumPy and the like; the engine's own threads are set by the configuration.
        os.environ["OMP_NUM_THREADS"] = str(config.compute_threads or 1)
        self._stage, self._options = LocalStage(config, options), options

    def __call__(self, images: pa.Table) -> pa.Table:
        """Explains images; returns their rows."""
        rows = list(self._stage.explain(self._loaded(image) for image in images.to_pylist()))
        return pa.Table.from_batches([to_batch(rows, overlays=self._options.overlays)])

    def _loaded(self, image: dict[str, Any]) -> Loaded | Row:
        data: bytes = image["data"]
        item = Item(image["index"], image["id"], image["path"], lambda: data)
        if image["error"] is not None:
            return error_row(item, image["error"])
        if image["height"] is None:
            return Loaded(item, data)
        raw = RawImage(data, *self._stage.input_size)
        return Loaded(item, raw, (image["height"], image["width"]))
