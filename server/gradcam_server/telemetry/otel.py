"""Tracing by OpenTelemetry. Imported only where it is on: see ``tracing``."""

import json
import sys
import threading
from collections.abc import Mapping
from time import perf_counter_ns, time_ns

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.trace import Span, SpanKind, StatusCode

from gradcam_server.domain.requests import Stats
from gradcam_server.telemetry.tracing import Call, Metadata, Tracer

CLOSE_S = 3.0

# The codes that are the server's fault, by OpenTelemetry's conventions for gRPC.
_FAULTS = frozenset(
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"]
)


def open_tracer(mode: str, version: str) -> Tracer:
    """Returns a tracer that sends ("otlp") or prints ("console")."""
    # The SDK's exit hook would wait half a minute for a collector that is gone.
    provider = TracerProvider(resource=_resource(version), shutdown_on_exit=False)
    if mode == "otlp":
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    else:
        exporter = ConsoleSpanExporter(out=sys.stdout, formatter=_line)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OtelTracer(provider)


class OtelTracer(Tracer):
    """Records the spans of requests.

    Args:
        provider: Receives the spans; shut down with the tracer.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("gradcam_server")

    def call(self, method: str, metadata: Metadata) -> Call:
        """Begins the span of a request."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        clock_ns = time_ns() - perf_counter_ns()
        span = self._tracer.start_span(
            method,
            propagate.extract(carrier),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method},
            start_time=clock_ns + perf_counter_ns(),
        )
        return _OtelCall(self._tracer, span, clock_ns)

    def close(self) -> None:
        """Sends the remaining spans; gives up after ``CLOSE_S`` seconds."""
        shutdown = threading.Thread(target=self._provider.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(CLOSE_S)


class _OtelCall(Call):
    """A span. ``clock_ns`` is the time of day less ``perf_counter_ns``, one for all spans."""

    def __init__(self, tracer: trace.Tracer, span: Span, clock_ns: int) -> None:
        self._tracer, self._span, self._clock_ns = tracer, span, clock_ns
        self._context = trace.set_span_in_context(span)
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else ""

    def item(self) -> Call:
        span = self._tracer.start_span("image", self._context, start_time=self._now_ns())
        return _OtelCall(self._tracer, span, self._clock_ns)

    def describe(self, **attributes: str | int | float | bool) -> None:
        self._span.set_attributes(
            {f"gradcam.{name}": value for name, value in attributes.items() if value != ""}
        )

    def stages(self, times: Stats) -> None:
        if not self._span.is_recording():
            return
        batch: dict[str, str | int] = {
            "gradcam.batch.size": times.batch_size,
            "gradcam.batch.padded_size": times.padded_batch_size,
            "gradcam.batch.reason": str(times.dispatch_reason),
            "gradcam.pass_count": times.pass_count,
        }
        stages: tuple[tuple[str, int, Mapping[str, str | int]], ...] = (
            ("decode", times.decode_us, {}),
            ("queue", times.queue_us, {}),
            *([("compile", times.compile_us, {})] if times.compile_us else []),
            ("compute", times.compute_us, batch),
            ("render", times.render_us, {}),
        )
        began_ns = self._now_ns() - sum(duration_us for _, duration_us, _ in stages) * 1000
        for name, duration_us, attributes in stages:
            span = self._tracer.start_span(
                name, self._context, attributes=attributes, start_time=began_ns
            )
            began_ns += duration_us * 1000
            span.end(began_ns)

    def end(self, code: str) -> None:
        self._span.set_attribute("rpc.response.status_code", code)
        if code in _FAULTS:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._now_ns())

    def _now_ns(self) -> int:
        return self._clock_ns + perf_counter_ns()


def _resource(version: str) -> Resource:
    resource = Resource.create({SERVICE_VERSION: version})
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "gradcam-server"}))
    return resource


def _line(span: ReadableSpan) -> str:
    return json.dumps(json.loads(span.to_json())) + "\n"
