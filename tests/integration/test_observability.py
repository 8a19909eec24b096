"""Metrics, probes, logs and traces of a real server."""

import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from gradcam_client import Client, NotFoundError, SmoothGrad
from support.certificates import replace
from support.server import RunningServer

MODEL = "efficientnet-lite0"
NATIVE_WORDS = Path(__file__).resolve().parent.parent / "support" / "native_words"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with metrics, probes, logs and traces, that samples every answer."""
    folder = tmp_path_factory.mktemp("observability")
    running = RunningServer(
        *("--model", MODEL, "--compiler", "tensorflow", "--batch-sizes", "1,4"),
        *("--http-port", "0", "--log-format", "json", "--tracing", "console"),
        *("--sample-share", "1"),
        TF_CPP_MIN_LOG_LEVEL="0",
        PYTHONPATH=str(NATIVE_WORDS),
        NATIVE_WORDS=str(folder / "words"),
        stdout=folder / "traces.jsonl",
    )
    try:
        running.wait_for("Metrics on http")
        assert get(running, "/readyz") == (503, "warming up\n")
        assert get(running, "/healthz") == (200, "ok\n")
        yield running.wait_ready()
    finally:
        running.kill()


@pytest.fixture(scope="module")
def traffic(server: RunningServer, images: Path) -> Client:
    """Two unary requests, three of a stream (one invalid), one for an unknown model."""
    with Client(server.address) as client:
        for _ in range(2):
            client.explain(images / "cat.jpg", smooth=SmoothGrad(2))
        list(client.explain_stream([images / "cat.jpg", b"no image", images / "espresso.jpg"]))
        with pytest.raises(NotFoundError):
            client.explain(images / "cat.jpg", model="nobody")
    return client


def get(server: RunningServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(server.http_address + path, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def metrics(server: RunningServer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    _, text = get(server, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(server: RunningServer, name: str, **labels: str) -> float:
    return metrics(server)[name, frozenset(labels.items())]


@pytest.mark.usefixtures("traffic")
def test_requests_are_counted_by_rpc_model_and_code(server: RunningServer) -> None:
    """Each image of a stream counts; an unknown model does not become a label."""
    counts = {
        ("ExplainImage", MODEL, "OK"): 2,
        ("ExplainImage", "", "NOT_FOUND"): 1,
        ("StreamExplainImages.image", MODEL, "OK"): 2,
        ("StreamExplainImages.image", MODEL, "INVALID_ARGUMENT"): 1,
        ("StreamExplainImages", "", "OK"): 1,
    }
    for (rpc, model, code), count in counts.items():
        assert value(server, "gradcam_requests_total", rpc=rpc, model=model, code=code) == count
    assert "nobody" not in get(server, "/metrics")[1]
    assert value(server, "gradcam_stage_seconds_count", stage="compute") == 4


@pytest.mark.usefixtures("traffic")
def test_batches_add_up(server: RunningServer) -> None:
    """Images in batches are the passes of all requests and of sampling."""
    found = metrics(server)
    of_model = frozenset({("model", MODEL)})
    images = found["gradcam_batched_images_total", of_model]
    batches = sum(number for (name, _), number in found.items() if name == "gradcam_batches_total")
    assert found["gradcam_batch_size_sum", of_model] == images
    assert found["gradcam_batch_size_count", of_model] == batches
    assert images >= 4 + 2 * 2  # first passes and noisy copies
    padded = found["gradcam_padding_total", of_model]
    assert padded <= 3 * batches
    nothing: frozenset[tuple[str, str]] = frozenset()
    for queue in ("one_pass", "many_pass"):
        assert found["gradcam_queue_length", frozenset({("queue", queue)})] == 0
    assert found["gradcam_in_flight", nothing] == 0
    assert found["gradcam_engine_up", nothing] == 1
    assert found["gradcam_engine_resident_bytes", nothing] > 100e6
    with Client(server.address) as client:
        assert found["gradcam_compilations_total", nothing] == client.get_model().compilation_count


@pytest.mark.usefixtures("traffic")
def test_sampled_answers_show_that_maps_are_faithful(server: RunningServer) -> None:
    """Insertion is better than deletion on the photographs that were sent."""
    labels = {"model": MODEL, "method": "gradcam"}
    name = "gradcam_faithfulness_auc"
    wait_until(
        lambda: f'{name}_count{{curve="deletion",method="gradcam"' in get(server, "/metrics")[1]
    )
    count = value(server, f"{name}_count", curve="insertion", **labels)
    assert count >= 1
    assert value(server, f"{name}_count", curve="deletion", **labels) == count
    insertion = value(server, f"{name}_sum", curve="insertion", **labels)
    assert insertion > value(server, f"{name}_sum", curve="deletion", **labels) + 0.1 * count


def test_a_lost_engine_shows(server: RunningServer, traffic: Client, cat_jpeg: bytes) -> None:
    """The probe fails until the engine is back, and the restart is counted."""
    before = value(server, "gradcam_engine_restarts_total")
    (engine,) = server.engines()
    engine.kill()
    engine.wait()
    with Client(server.address) as client:
        status, reason = get(server, "/readyz")
        assert (status, reason) in {(503, "restarting\n"), (200, "ready\n")}
        client.wait_ready(60)
        assert client.explain(cat_jpeg).top.index == 285
    assert get(server, "/readyz") == (200, "ready\n")
    assert value(server, "gradcam_engine_restarts_total") == before + 1


def broken(content: bytes) -> bytes:
    """Files for which a decoder may print warnings."""
    middle = len(content) // 2
    return content[:middle] + b"\x00\xff\x03" * 20 + content[middle + 60 :]


@pytest.mark.usefixtures("traffic")
def test_the_log_is_json_without_image_content(server: RunningServer, cat_jpeg: bytes) -> None:
    """Every line, also of native code, is an object with time, level, logger and message."""
    png = io.BytesIO()
    Image.open(io.BytesIO(cat_jpeg)).save(png, "png")
    with Client(server.address) as client:
        list(client.explain_stream([broken(cat_jpeg), broken(png.getvalue())]))
    (engine,) = server.engines()
    pids = server.pid, engine.pid
    assert server.stdout is not None
    replace(server.stdout.with_name("words"), " ".join(map(str, pids)).encode())
    for pid in pids:
        server.wait_for(f'"native words of {pid}"')
    entries: list[dict[str, Any]] = [json.loads(line) for line in server.text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= entry.keys() for entry in entries)
    assert any("Serving" in entry["message"] for entry in entries)
    assert "\\xff\\xd8" not in server.text
    assert max(map(len, server.text.splitlines())) < 5000


def test_traces_go_from_the_client_to_the_stages(server: RunningServer, cat_jpeg: bytes) -> None:
    """The client's span is the parent of the request's, and that of its stages."""
    tracer = TracerProvider().get_tracer("test")
    with (
        tracer.start_as_current_span("caller") as span,
        Client(server.address) as client,
    ):
        client.explain(cat_jpeg)
        trace_id = f"0x{span.get_span_context().trace_id:032x}"
        parent = f"0x{span.get_span_context().span_id:016x}"
    assert server.stdout is not None
    spans = [json.loads(line) for line in server.stdout.read_text().splitlines()]
    ours = {one["name"]: one for one in spans if one["context"]["trace_id"] == trace_id}
    call = ours.pop("gradcam.v1.ExplanationService/ExplainImage")
    assert call["parent_id"] == parent
    assert ours.keys() == {"decode", "queue", "compute", "render"}
    assert {one["parent_id"] for one in ours.values()} == {call["context"]["span_id"]}
    assert ours["compute"]["attributes"]["gradcam.batch.size"] == 1
