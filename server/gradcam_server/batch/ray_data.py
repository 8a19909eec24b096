"""Explains images on a Ray cluster: Ray Data moves the images, and a pool of actors holds engines.

    ranges -> read and decode (tasks on CPUs) -> engines (actors) -> rows, in order, to the caller

Tasks send images of the model's input size to engines, 150 KB each at 224 x 224; for overlays,
which are drawn on the whole image, they send the files. Ray Data schedules, bounds the number of
images in progress, restarts dead actors and reassigns their tasks.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

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

# Images of one task; fewer in small jobs, so that each CPU has several tasks.
_TASK_IMAGES = 256
_TASKS_PER_CPU = 8
_TASK_BYTES = 256 * 1024 * 1024
_BATCH_IMAGES = 64  # images in one call of an engine
# One call computes while the next is deserialized.
_CALLS_AT_ONCE = 2
_CPUS_PER_ACTOR = 8
_MAX_BLOCKS = 2000
# Ray reserves little for an engine, whatever the engine uses: so the engines of a lost node find
# room on other nodes, and the CPUs are left to the reading tasks. The reservation is not 0, because
# Ray would place such engines on nodes that offer no CPU, as heads of clusters often do.
_ENGINE_CPUS = 0.01
_GPU_CHECK_INTERVAL_S = 10.0

_IMAGES = pa.schema(
    [
        ("index", pa.int64()),
        ("id", pa.string()),
        ("path", pa.string()),
        ("error", pa.string()),
        ("data", pa.large_binary()),
        ("height", pa.int32()),  # of the original image, if the data are pixels
        ("width", pa.int32()),
    ]
)


class RayStage(AbstractContextManager["RayStage"]):
    """A pool of engines on a Ray cluster.

    Args:
        config: The settings of each engine.
        options: How each image is explained.
        address: The cluster's address; None starts a cluster on this machine, unless this process
            uses Ray already.
        actors: The number of engines; None is one for each GPU, or for each 8 CPUs.

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
                looking = _check_model.remote(config, options, self._folder)
                self._input_size = ray.get(looking)
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the cluster, and stops it if this stage started it."""
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
            # Engines reserve no memory: Ray would run tasks of equal resources within them.
            memory=_TASK_BYTES,
        )
        # Ray Data restarts dead actors and retries their tasks without limit: max_restarts and
        # max_task_retries are -1 by default.
        rows = images.map_batches(
            EngineActor,
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
        with _errors_of_ray(), gpu_warnings(self._gpus * self._actors):
            for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from from_columns(table)


def _start(address: str | None) -> None:
    # Ray logs progress, which the caller shows, and errors, which are also raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if address is None and not os.environ.get("RAY_ADDRESS"):
        address = "local"  # else Ray joins the last cluster that was started on this machine
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
    """Turns errors of tasks and actors into ``StageError``."""
    try:
        yield
    except RayError as error:
        cause: BaseException | None = getattr(error, "cause", None)
        while cause is not None and not isinstance(cause, ExplanationServerError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise StageError(str(cause or error)) from error


@contextmanager
def gpu_warnings(needed: float, interval_s: float = _GPU_CHECK_INTERVAL_S) -> Iterator[None]:
    """Logs, within the context, when the cluster has fewer GPUs than the engines need.

    Ray Data does not reassign the images that a lost engine was computing: they wait until that
    engine gets a free GPU, at the latest that of an engine with no work left.

    Args:
        needed: GPUs of all engines.
        interval_s: Seconds between two checks.
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
                    "The engines need %g GPUs, and the cluster has %g left: the images of lost "
                    "engines wait for a free GPU, and their shards with them. A job that is "
                    "stopped and started again does not wait.",
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


# The process ends after one call: it would keep a model in memory.
@ray.remote(max_calls=1)
def _check_model(config: ServeConfig, options: ExplainOptions, folder: str) -> tuple[int, int]:
    """Returns the model's input size; raises if it lacks the layer or the class."""
    _enter(folder)
    # This task computes nothing, and has no GPU.
    with LocalStage(replace(config, batch_sizes=(1,), device=()), options) as stage:
        return stage.input_size


def _enter(folder: str) -> None:
    """Makes relative paths relative to the folder where the job was started, if it exists here."""
    if Path(folder).is_dir():
        os.chdir(folder)


def _read(
    chunks: pa.Table,
    source_ref: "ray.ObjectRef[Source]",
    config: ServeConfig,
    options: ExplainOptions,
    input_size: tuple[int, int],
    folder: str,
) -> Iterator[pa.Table]:
    """Reads and decodes ranges of a source, of which the cluster stores one copy."""
    import cv2

    _enter(folder)
    source: Source = ray.get(source_ref)
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


class EngineActor:
    """An actor with an engine."""

    def __init__(self, config: ServeConfig, options: ExplainOptions, folder: str) -> None:
        _enter(folder)
        # For NumPy and other libraries; the configuration sets the engine's threads.
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
