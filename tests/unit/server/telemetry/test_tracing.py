"""Spans, as OpenTelemetry's own SDK records them and a collector receives them."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import perf_counter

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from gradcam_client.tracing import trace_metadata
from gradcam_server.domain.requests import Stats
from gradcam_server.errors import StartupError
from gradcam_server.telemetry import otel, tracing
from gradcam_server.telemetry.otel import OtelTracer
from gradcam_server.telemetry.setup import configure_tracing

METHOD = "gradcam.v1.ExplanationService/ExplainImage"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
STATS = Stats(1000, 2000, 4000, 500, batch_size=3, padded_batch_size=4, dispatch_reason="idle")


class Recorded:
    """A tracer, and the spans that ended."""

    def __init__(self, provider: TracerProvider) -> None:
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = OtelTracer(provider)

    def span(self, name: str) -> ReadableSpan:
        (one,) = [span for span in self.spans if span.name == name]
        return one

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    one = Recorded(TracerProvider(shutdown_on_exit=False))
    yield one
    one.tracer.close()


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def parent_id(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def test_a_request_continues_its_callers_trace(recorded: Recorded) -> None:
    """The parent is the caller's span, by W3C's traceparent."""
    call = recorded.tracer.call(METHOD, [TRACEPARENT, ("x-bin", b"\x00")])
    assert call.trace_id == TRACE
    call.end("OK")
    span = recorded.span(METHOD)
    assert trace.format_span_id(parent_id(span)) == PARENT
    assert span.kind is trace.SpanKind.SERVER
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
    }


@pytest.mark.parametrize("metadata", [[], [("traceparent", "nonsense")]])
def test_a_request_without_a_parent_begins_a_trace(
    recorded: Recorded, metadata: list[tuple[str, str]]
) -> None:
    """Nonsense in the metadata does no harm."""
    call = recorded.tracer.call(METHOD, metadata)
    call.end("OK")
    assert int(call.trace_id, 16)
    assert recorded.span(METHOD).parent is None


def test_stages_follow_each_other_up_to_now(recorded: Recorded) -> None:
    """Their durations are those that the answer reports; compute has the batch."""
    call = recorded.tracer.call(METHOD, [])
    call.stages(STATS)
    call.end("OK")
    stages = [recorded.span(name) for name in ("decode", "queue", "compute", "render")]
    times = [(span.start_time or 0, span.end_time or 0) for span in stages]
    assert [end - start for start, end in times] == [1_000_000, 2_000_000, 4_000_000, 500_000]
    assert [end for _, end in times[:-1]] == [start for start, _ in times[1:]]
    assert times[-1][1] <= (recorded.span(METHOD).end_time or 0)
    assert {parent_id(span) for span in stages} == {span_id(recorded.span(METHOD))}
    assert stages[2].attributes == {
        "gradcam.batch.size": 3,
        "gradcam.batch.padded_size": 4,
        "gradcam.batch.reason": "idle",
        "gradcam.pass_count": 1,
    }


def test_compiling_is_a_span_before_computing(recorded: Recorded) -> None:
    """Only where an image waited for it; the stages still follow one another."""
    call = recorded.tracer.call(METHOD, [])
    call.stages(STATS)
    assert "compile" not in {span.name for span in recorded.spans}
    call.stages(dataclasses.replace(STATS, compile_us=7000))
    found = {span.name: span for span in recorded.spans}  # the second image's
    compiling = found["compile"]
    assert (compiling.end_time or 0) - (compiling.start_time or 0) == 7_000_000
    assert found["queue"].end_time == compiling.start_time
    assert compiling.end_time == found["compute"].start_time


def test_each_image_of_a_stream_has_its_span(recorded: Recorded) -> None:
    """Stages lie below their image, and images below the stream."""
    call = recorded.tracer.call(METHOD, [])
    image = call.item()
    image.describe(model="resnet50", absent="")
    image.stages(STATS)
    image.end("INVALID_ARGUMENT")
    call.end("OK")
    span = recorded.span("image")
    assert image.trace_id == call.trace_id
    assert parent_id(span) == span_id(recorded.span(METHOD))
    assert parent_id(recorded.span("compute")) == span_id(span)
    assert span.attributes == {
        "gradcam.model": "resnet50",
        "rpc.response.status_code": "INVALID_ARGUMENT",
    }


@pytest.mark.parametrize(("code", "is_fault"), [("INTERNAL", True), ("NOT_FOUND", False)])
def test_only_faults_of_the_server_are_errors(
    recorded: Recorded, code: str, is_fault: bool
) -> None:
    """By OpenTelemetry's conventions a bad request is the client's fault."""
    recorded.tracer.call(METHOD, []).end(code)
    assert recorded.span(METHOD).status.is_ok is not is_fault


def test_what_is_not_sampled_is_not_recorded() -> None:
    """No span of a stage is made in vain; the trace's id is still known."""
    recorded = Recorded(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    call = recorded.tracer.call(METHOD, [TRACEPARENT])
    call.stages(STATS)
    call.item().end("OK")
    call.end("OK")
    assert call.trace_id == TRACE
    assert not recorded.spans


def test_off_does_nothing() -> None:
    """The same calls work, without a trace id."""
    tracer = configure_tracing("off", "1.0")
    with tracing.working_for(tracer.call(METHOD, [TRACEPARENT])) as call:
        assert tracing.current_call.get() is call
        call.item().stages(STATS)
        call.describe(model="resnet50")
        call.end("OK")
    assert call.trace_id == ""
    tracer.close()


def test_off_does_not_import_opentelemetry() -> None:
    """It is an extra: servers without it must start, and those with it start faster."""
    code = (
        "import sys; from gradcam_client import tracing as c;"
        "from gradcam_server.telemetry import setup;"
        "setup.configure_tracing('off', '1'); assert c.trace_metadata() == ();"
        "sys.exit('opentelemetry' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra, or the modes."""
    monkeypatch.setitem(sys.modules, "gradcam_server.telemetry.otel", None)
    with pytest.raises(StartupError, match=r"pip install 'gradcam-server\[tracing\]'"):
        configure_tracing("otlp", "1.0")
    with pytest.raises(StartupError, match="off, otlp, console"):
        configure_tracing("jaeger", "1.0")


def test_the_console_gets_a_line_for_each_span(capsys: pytest.CaptureFixture[str]) -> None:
    """With the server's name where the operator gave none."""
    tracer = configure_tracing("console", "1.0")
    call = tracer.call(METHOD, [])
    call.stages(STATS)
    call.end("OK")
    tracer.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == ["decode", "queue", "compute", "render", METHOD]
    assert lines[0]["resource"]["attributes"]["service.name"] == "gradcam-server"
    assert lines[0]["resource"]["attributes"]["service.version"] == "1.0"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector that keeps the spans that it receives."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_collector_gets_the_spans_by_gRPC(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the latest when the server closes; the variables of OpenTelemetry have their effects."""
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "explainer")
    tracer = configure_tracing("otlp", "1.0")
    call = tracer.call(METHOD, [TRACEPARENT])
    call.stages(STATS)
    call.end("OK")
    tracer.close()
    collector.server.stop(0).wait()
    (request,) = collector.requests
    (resource,) = request.resource_spans
    attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert attributes["service.name"] == "explainer"
    (scope,) = resource.scope_spans
    assert {span.trace_id.hex() for span in scope.spans} == {TRACE}
    assert len(scope.spans) == 5


def test_closing_waits_for_no_dead_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server stops although its spans cannot be sent: it gives up, and does not hang."""
    monkeypatch.setattr(otel, "CLOSE_S", 0.2)
    blocked = Event()

    class Stuck(TracerProvider):
        def shutdown(self) -> None:
            blocked.wait()

    started = perf_counter()
    OtelTracer(Stuck(shutdown_on_exit=False)).close()
    assert perf_counter() - started < 60
    blocked.set()


def test_the_client_hands_its_span_on(recorded: Recorded) -> None:
    """The server's span becomes a child of the client's, and without one nothing is sent."""
    assert trace_metadata() == ()
    provider = TracerProvider(shutdown_on_exit=False)
    with provider.get_tracer("program").start_as_current_span("ask") as span:
        metadata = trace_metadata()
        expected = span.get_span_context()
    call = recorded.tracer.call(METHOD, metadata)
    call.end("OK")
    assert call.trace_id == trace.format_trace_id(expected.trace_id)
    assert parent_id(recorded.span(METHOD)) == expected.span_id
