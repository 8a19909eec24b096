"""Explains images by running servers, over streams. Neither a model nor a decoder is loaded here.

    items -> window -> streams (threads; each goes to a server that is up) -> rows, in order

A stream that breaks is opened again, on another server if there is one, and what was not answered
is sent again: that is the client's work (``gradcam_client.stream``). Streams are opened anew from
time to time, so that a server that comes back gets its share.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Self

from gradcam_client import Client, GradCamError, ModelInfo, OverlayJpeg, Raw
from gradcam_client.errors import MessageTooLargeError, ServerError, UnavailableError
from gradcam_client.requests import HeatmapForm
from gradcam_client.retry import RetryPolicy
from gradcam_client.stream import Outcome
from gradcam_client.transport import split_target
from gradcam_server.batch.errors import StageError
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.schema import Row, describe, error_row, row_of
from gradcam_server.batch.sources.base import Item, Source
from gradcam_server.batch.stage import Ranges

_STREAMS_PER_SERVER = 2
_IN_FLIGHT = 32  # images of a stream
_STREAM_IMAGES = 2000
# A server may be gone for a while, and a busy one may let those that are more urgent go first.
_TIMEOUT_S = 300.0
RETRY = RetryPolicy(max_attempts=30, initial_backoff_s=0.2, max_backoff_s=10.0)
_IMAGE_FIELDS = ("encoded_image", "raw_image", "raw_image.data")

Connect = Callable[[str, RetryPolicy], Client]


class RemoteStage:
    """Servers.

    Args:
        servers: "host:port", or several of them with commas between.
        connect: Makes a client of one or several servers.
        options: What is asked of each image.
        model: The model's name; empty is the servers' first.
        priority: Of the requests; 1 goes first.

    Raises:
        StageError: No server answers, or they have different models.
        GradCamError: A server's answer to a wrong name.
    """

    def __init__(
        self,
        servers: str,
        connect: Connect,
        options: ExplainOptions,
        *,
        model: str = "",
        priority: int = 100,
    ) -> None:
        self._options, self._targets = options, split_target(servers)
        _check(self._targets, connect, model, options)
        self._client = connect(servers, RETRY)
        overlay = [OverlayJpeg()] if options.overlays else []
        heatmaps: list[HeatmapForm] = [Raw(), *overlay]
        self._arguments: dict[str, Any] = {
            "model": model,
            "classes": [] if options.target is None else [options.target],
            "top_k": 1 if options.target is None else None,
            "layer": options.layer,
            "method": options.method,
            "resize": options.resize,
            "heatmaps": heatmaps,
            "prediction_count": options.top_k,
            "priority": priority,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def rows(self, source: Source, ranges: Ranges) -> Iterator[Row]:
        """Yields the rows of ranges, as ``Stage`` says."""
        items = (item for start, stop in ranges for item in source.read(start, stop))
        streams = _STREAMS_PER_SERVER * len(self._targets)
        window = _Window(items, 2 * streams * _IN_FLIGHT)
        threads = [
            threading.Thread(target=self._stream, args=(window,), name="batch-stream", daemon=True)
            for _ in range(streams)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from window.rows()
        finally:
            window.close()
            for thread in threads:
                thread.join()

    def _stream(self, window: "_Window") -> None:
        """Explains what the window hands out, until there is no more."""
        try:
            while not window.ended:
                self._explain(window)
        except BaseException as error:  # noqa: BLE001 - raised to the caller
            window.fail(error)

    def _explain(self, window: "_Window") -> None:
        sent: deque[tuple[int, Item]] = deque()

        def images() -> Iterator[bytes]:
            for number, item in islice(window.items(), _STREAM_IMAGES):
                try:
                    data = item.load()
                except (OSError, ValueError) as error:
                    window.put(number, error_row(item, describe(error)))
                    continue
                sent.append((number, item))
                yield data

        outcomes = self._client.explain_stream(
            images(), max_in_flight=_IN_FLIGHT, timeout_s=_TIMEOUT_S, **self._arguments
        )
        try:
            for outcome in outcomes:
                number, item = sent.popleft()
                window.put(number, self._row(item, outcome))
                if window.closed:
                    return
        finally:
            outcomes.close()

    def _row(self, item: Item, outcome: Outcome) -> Row:
        if outcome.result is not None:
            return row_of(item, outcome.result, self._options)
        error = outcome.error
        if not isinstance(error, GradCamError):
            return error_row(item, str(error))
        of_image = isinstance(error, MessageTooLargeError | ServerError)
        if of_image or error.field in _IMAGE_FIELDS:
            return error_row(item, error.message)
        advice = ". What is finished stays; the same command goes on" if error.retryable else ""
        raise StageError(f"{', '.join(self._targets)}: {error}{advice}") from error


class _Window:
    """Hands out items to threads, and their rows in order: never more than ``size`` are out."""

    def __init__(self, items: Iterator[Item], size: int) -> None:
        self._items, self._size = enumerate(items), size
        self._changed = threading.Condition()
        self._reading = threading.Lock()
        self._rows: dict[int, Row] = {}
        self._out = self._handed_out = 0
        self._error: BaseException | None = None
        self._total: int | None = None
        self.closed = False

    @property
    def ended(self) -> bool:
        """Whether no more items will be handed out."""
        return self.closed or self._total is not None

    def items(self) -> Iterator[tuple[int, Item]]:
        """Yields numbers and items, each to one thread only, as soon as there is room."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.ended or self._out < self._size)
                if self.ended:
                    return
                self._out += 1
            with self._reading:
                following = None if self.ended else next(self._items, None)
                with self._changed:
                    if following is None:
                        self._out -= 1
                        self._total = self._handed_out
                        self._changed.notify_all()
                        return
                    self._handed_out += 1
            yield following

    def put(self, number: int, row: Row) -> None:
        """Takes the row of an item."""
        with self._changed:
            self._rows[number] = row
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Raises an error where rows are taken."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def close(self) -> None:
        """Hands out no more items."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def rows(self) -> Iterator[Row]:
        """Yields the rows in the order of their items.

        Raises:
            BaseException: What a thread failed with.
        """
        number = 0
        while (row := self._take(number)) is not None:
            yield row
            number += 1

    def _take(self, number: int) -> Row | None:
        with self._changed:
            self._changed.wait_for(
                lambda: number in self._rows or number == self._total or self._error is not None
            )
            if number in self._rows:
                self._out -= 1
                self._changed.notify_all()
                return self._rows.pop(number)
            if self._error is not None:
                raise self._error
            return None


def _check(targets: tuple[str, ...], connect: Connect, model: str, options: ExplainOptions) -> None:
    """Finds out whether the servers that are up answer alike.

    Raises:
        StageError: None is up, or two have different models.
        GradCamError: They have no such model.
    """
    found: dict[str, ModelInfo] = {}
    error: GradCamError | None = None
    for target in targets:
        with connect(target, RetryPolicy(max_attempts=2)) as client:
            try:
                found[target] = client.get_model(model)
            except UnavailableError as unavailable:
                error = unavailable
    if not found:
        raise StageError(f"{', '.join(targets)}: no server answers ({error})")
    (first, info), *others = found.items()
    for target, other in others:
        if _identity(other) != _identity(info):
            raise StageError(
                f"{first} has {_name(info)} and {target} has {_name(other)}: the servers of a job "
                "must have the same model; name it with --model, or leave one of them out"
            )
    layers = {layer.name for layer in info.layers if layer.explainable}
    names = layers | {name.rpartition("/")[2] for name in layers}
    if options.layer and options.layer not in names:
        raise StageError(
            f"{_name(info)} at {first} has no layer {options.layer!r} that can be explained; see "
            f"gradcam layers --server {first}"
        )


def _identity(info: ModelInfo) -> tuple[object, ...]:
    return info.name, info.version, info.weights, info.classes


def _name(info: ModelInfo) -> str:
    version = f" {info.version}" if info.version else ""
    return f"{info.name}{version} ({info.weights})"
