"""Explains images in this process, by the server's pipeline.

    read and decode (threads) -> batch -> compiled graph (the device's thread) -> row

All steps run at once, on the event loop of a thread, while the caller writes rows.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.schema import IMAGE_FIELDS, Row, describe, error_row, row_of
from gradcam_server.batch.sources.base import Item, Source
from gradcam_server.batch.stage import Ranges
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.requests import (
    ExplainRequest,
    HeatmapForm,
    HeatmapFormat,
    Method,
    RawImage,
    ResizeMode,
    Target,
    TopK,
)
from gradcam_server.engine.backend import Backend, LocalBackend
from gradcam_server.errors import ExplanationServerError, InvalidRequestError
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.pipeline.pipeline import load
from gradcam_server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from gradcam_server.engine.engine import Engine

# One batch is on the device, the next one waits for it, and a third is being decoded.
_BATCHES_IN_FLIGHT = 3
_READERS = max(4, os.cpu_count() or 1)
# Images move between threads in chunks: one at a time, that costs as much as decoding.
_CHUNK = 8

_T = TypeVar("_T")


@dataclass(frozen=True)
class Loaded:
    """An image that was read.

    Attributes:
        item: The image's entry in the source.
        image: An encoded file, or pixels of the model's input size.
        size: (height, width) of the original image, if ``image`` holds pixels.
    """

    item: Item
    image: bytes | RawImage
    size: tuple[int, int] | None = None


class LocalStage(AbstractContextManager["LocalStage"]):
    """An engine in this process.

    Args:
        config: The settings; those of the network are ignored.
        options: How each image is explained.
        backend: The backend to use; None makes one of the models of ``config``.

    Raises:
        StartupError: The model or its weights cannot be had.
        ExplanationServerError: The model has no such class or layer.
    """

    def __init__(
        self, config: ServeConfig, options: ExplainOptions, backend: Backend | None = None
    ) -> None:
        self._config, self._options, self._request = config, options, _request(options)
        self._in_flight = max(_BATCHES_IN_FLIGHT * max(config.batch_sizes), 2 * _CHUNK * _READERS)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stage", daemon=True)
        self._thread.start()
        try:
            if backend is None:
                backend = self._wait(_backend(config, _engine(config)))
            self._explainer = self._wait(_explainer(config, backend))
        except BaseException:
            self._stop()
            raise
        try:
            self._input_size = backend.catalog.models[0].input_size
            _check(backend, self._request(b""))
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the engine and all threads; images in progress are cancelled."""
        self._wait(self._cancel())
        self._wait(self._explainer.close())
        self._stop()

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the model's input in pixels."""
        return self._input_size

    def rows(self, source: Source, ranges: Ranges) -> Iterator[Row]:
        """Yields the rows of ranges, as ``Stage`` says."""
        return self.explain(item for start, stop in ranges for item in source.read(start, stop))

    def explain(self, items: Iterable[Item | Loaded | Row]) -> Iterator[Row]:
        """Yields the row of each image, in the given order; given rows are passed through."""
        pending: deque[Future[list[Row]]] = deque()
        items = iter(items)
        try:
            while chunk := list(islice(items, _CHUNK)):
                pending.append(asyncio.run_coroutine_threadsafe(self._rows(chunk), self._loop))
                if len(pending) * _CHUNK >= self._in_flight:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    async def _rows(self, chunk: list[Item | Loaded | Row]) -> list[Row]:
        task = asyncio.current_task()
        assert task
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        loaded = await self._loop.run_in_executor(self._readers, self._load, chunk)
        return await asyncio.gather(*map(self._row, loaded))

    async def _cancel(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _load(self, chunk: list[Item | Loaded | Row]) -> list[Loaded | Row]:
        return [
            load_item(item, self._config, self._options, self._input_size)
            if isinstance(item, Item)
            else item
            for item in chunk
        ]

    async def _row(self, loaded: Loaded | Row) -> Row:
        if isinstance(loaded, Row):
            return loaded
        item = loaded.item
        request = self._request(loaded.image)
        try:
            explained = await self._explainer.explain(request, wait_for_slot=True)
        except InvalidRequestError as error:
            if error.field not in IMAGE_FIELDS:
                raise
            return error_row(item, str(error))
        except (ExplanationServerError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - only this image fails
            return error_row(item, f"it cannot be computed ({type(error).__name__}: {error})")
        row = row_of(item, explained, self._options)
        if loaded.size is not None:
            row.height, row.width = loaded.size
        return row

    def _wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._readers.shutdown(cancel_futures=True)


def load_item(
    item: Item, config: ServeConfig, options: ExplainOptions, input_size: tuple[int, int]
) -> Loaded | Row:
    """Reads an image; also decodes and resizes it, unless an overlay needs all of its pixels.

    Args:
        item: The image.
        config: The settings.
        options: How it is explained.
        input_size: (height, width) of the model's input.

    Returns:
        The image, or an error row if it cannot be read or decoded.
    """
    try:
        data = item.load()
        if options.overlays:
            return Loaded(item, data)
        image = load(data, config, input_size, ResizeMode(options.resize), is_whole_needed=False)
    except (OSError, ValueError, InvalidRequestError) as error:
        return error_row(item, describe(error))
    size = image.placement.vertical.image_size, image.placement.horizontal.image_size
    return Loaded(item, RawImage(image.fitted.tobytes(), *input_size), size)


def _request(options: ExplainOptions) -> Callable[[bytes | RawImage], ExplainRequest]:
    """Returns a function that makes the request for an image."""
    raw = HeatmapForm(HeatmapFormat.RAW_FLOAT32)
    overlay = [HeatmapForm(HeatmapFormat.OVERLAY_JPEG)] if options.overlays else []
    common = ExplainRequest(
        image=b"",
        targets=TopK(1) if options.target is None else (Target(options.target),),
        layers=(options.layer,) if options.layer else (),
        method=Method(options.method),
        # Without overlays, images are resized before: they must not be cropped again.
        resize_mode=ResizeMode(options.resize) if options.overlays else ResizeMode.STRETCH,
        forms=(raw, *overlay),
        prediction_count=options.top_k,
    )
    return lambda image: replace(common, image=image)


def _engine(config: ServeConfig) -> "Engine":
    from gradcam_server.batch.throughput import ThroughputEngine

    return ThroughputEngine(config)


async def _backend(config: ServeConfig, engine: "Engine") -> Backend:
    return LocalBackend(config, engine)


async def _explainer(config: ServeConfig, backend: Backend) -> Explainer:
    return Explainer(config, backend, Metrics())


def _check(backend: Backend, request: ExplainRequest) -> None:
    """Raises the errors with which every image would fail."""
    model = backend.catalog.models[0]
    model.resolve_layers(request.layers)
    if isinstance(request.targets, tuple):
        for target in request.targets:
            model.labels.index(target.name)
