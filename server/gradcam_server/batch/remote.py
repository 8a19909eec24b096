"""Explains images on running servers, over streams. No model or decoder is loaded here.

    items -> window -> streams (threads, each to a server that is up) -> rows, in order

The client (``gradcam_client.stream``) reopens a broken stream, on another server if there is one,
and sends unanswered images again. After some images a stream is closed and a new one opened, so
that a server that comes back gets its share.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from gradcam_client import Client, GradCamError, ModelInfo, OverlayJpeg, Raw
from gradcam_client.errors import MessageTooLargeError, ServerError, UnavailableError
from gradcam_client.requests import HeatmapForm
from gradcam_client.retry import RetryPolicy
from gradcam_client.stream import Outcome
from gradcam_client.transport import split_target
from gradcam_server.batch.errors import StageError
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.schema import IMAGE_FIELDS, Row, describe, error_row, row_of
from gradcam_server.batch.sources.base import Item, Source
from gradcam_server.batch.stage import Ranges
from gradcam_server.batch.window import Window

_STREAMS_PER_SERVER = 2
_IN_FLIGHT = 32  # images of a stream
_STREAM_IMAGES = 2000  # then a new stream is opened
# A server may be down for a while, and a busy server answers more urgent requests first.
_TIMEOUT_S = 300.0
RETRY = RetryPolicy(max_attempts=30, initial_backoff_s=0.2, max_backoff_s=10.0)

Connect = Callable[[str, RetryPolicy], Client]


class RemoteStage(AbstractContextManager["RemoteStage"]):
    """A stage on running servers.

    Args:
        servers: "host:port", or several with commas between them.
        connect: Makes a client of one or several servers.
        options: How each image is explained.
        model: The model's name; empty is the servers' first model.
        priority: The priority of the requests; 1 is the highest.

    Raises:
        StageError: No server answers, or their models differ.
        GradCamError: The servers have no model of that name.
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
        self._options, targets = options, split_target(servers)
        self._servers, self._stream_count = ", ".join(targets), _STREAMS_PER_SERVER * len(targets)
        _check(targets, connect, model, options)
        self._client = connect(servers, RETRY)
        overlay = [OverlayJpeg()] if options.overlays else []
        heatmaps: list[HeatmapForm] = [Raw(), *overlay]
        self._arguments: dict[str, Any] = {
            "model": model,
            "classes": [] if options.target is None else [options.target],
            "top_k": 1 if options.target is None else None,
            "layers": options.layer,
            "method": options.method,
            "resize": options.resize,
            "heatmaps": heatmaps,
            "predictions": options.top_k,
            "priority": priority,
        }

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def rows(self, source: Source, ranges: Ranges) -> Iterator[Row]:
        """Yields the rows of ranges, as ``Stage`` says."""
        items = (item for start, stop in ranges for item in source.read(start, stop))
        window = Window(items, 2 * self._stream_count * _IN_FLIGHT)
        threads = [
            threading.Thread(target=self._stream, args=(window,), name="batch-stream", daemon=True)
            for _ in range(self._stream_count)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from window.rows()
        finally:
            window.close()
            for thread in threads:
                thread.join()

    def _stream(self, window: Window) -> None:
        """Explains the window's items until there are no more."""
        try:
            while not window.ended:
                self._explain(window)
        except BaseException as error:  # noqa: BLE001 - raised to the caller
            window.fail(error)

    def _explain(self, window: Window) -> None:
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
                window.put(number, outcome_row(item, outcome, self._options, self._servers))
                if window.closed:
                    return
        finally:
            outcomes.close()


def outcome_row(item: Item, outcome: Outcome, options: ExplainOptions, servers: str) -> Row:
    """Makes the row of an image that servers explained, or at which they failed.

    Args:
        item: The image.
        outcome: The servers' result or error.
        options: How the image was explained.
        servers: The servers' addresses, for the error.

    Raises:
        StageError: The error concerns all images.
    """
    if outcome.ok:
        return row_of(item, outcome.result, options)
    error = outcome.error
    if not isinstance(error, GradCamError):
        return error_row(item, str(error))
    of_image = isinstance(error, MessageTooLargeError | ServerError)
    if of_image or error.field in IMAGE_FIELDS:
        return error_row(item, error.message)
    advice = ". Finished shards stay; the same command goes on" if error.retryable else ""
    raise StageError(f"{servers}: {error}{advice}") from error


def _check(targets: tuple[str, ...], connect: Connect, model: str, options: ExplainOptions) -> None:
    """Checks that the servers that are up have the same model, with the layer to explain.

    Raises:
        StageError: None is up, their models differ, or the model has no such layer.
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
                "must have the same model; name it with --model, or leave out one of them"
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
