"""Spans of requests, for OpenTelemetry; off by default: then each call does nothing.

    rpc (server; its parent comes from the client's metadata)
      image (for each image of a stream)
        decode, queue, compile (at a graph's first use), compute, render

Spans of stages are made when the image is done, from the times in its answer, so they do not delay
the image. Nothing here imports OpenTelemetry: ``setup.configure_tracing`` does.
"""

from collections.abc import Iterable
from contextvars import ContextVar
from typing import TypeAlias

from gradcam_server.domain.requests import Stats

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]


class Call:
    """The span of a request, or of one image of a stream. This one records nothing.

    Attributes:
        trace_id: The trace's id, 32 hexadecimal digits; empty if there is no trace.
    """

    trace_id = ""

    def item(self) -> "Call":
        """Begins the span of an image of a stream."""
        return self

    def describe(self, **attributes: str | int | float | bool) -> None:
        """Adds attributes, as gradcam.NAME. Never content of images."""

    def stages(self, times: Stats) -> None:
        """Adds the spans of an image's stages, one after the other; the last ends now."""

    def end(self, code: str) -> None:
        """Ends the span now, with the name of a gRPC code."""


class Tracer:
    """Begins the spans of requests. This one records nothing."""

    def call(self, method: str, metadata: Metadata) -> Call:
        """Begins the span of a request that has just arrived.

        Args:
            method: Its full name, such as gradcam.v1.ExplanationService/ExplainImage.
            metadata: The call's metadata; may name the parent span (W3C traceparent).
        """
        del method, metadata
        return NO_CALL

    def close(self) -> None:
        """Sends the remaining spans. Blocks for a few seconds at most."""


NO_CALL = Call()
NO_TRACER = Tracer()

current_call: ContextVar[Call] = ContextVar("current_call", default=NO_CALL)
"""The span of the request, or of the image of a stream, that the current task works for."""


class working_for:  # noqa: N801 - it is used as a function
    """Sets the call of the current task and of the tasks that it starts."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> Call:
        self._token = current_call.set(self._call)
        return self._call

    def __exit__(self, *_: object) -> None:
        current_call.reset(self._token)
