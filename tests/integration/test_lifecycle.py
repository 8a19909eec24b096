"""Start, drain and stop of the real server process."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gradcam_client import Client, GradCamError, OverloadedError, RetryPolicy, UnavailableError
from support.server import GRADCAM, TRACED, RunningServer, quick

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture
def started() -> Iterator[list[RunningServer]]:
    """Collects servers, and ends those that a test left running."""
    servers: list[RunningServer] = []
    yield servers
    for server in servers:
        server.kill()


def serve(started: list[RunningServer], *options: str) -> RunningServer:
    started.append(RunningServer(*(options if "--model" in options else (*quick(), *options))))
    return started[-1]


def test_health_says_not_serving_until_everything_is_warm(started: list[RunningServer]) -> None:
    """The port answers at once, requests are refused, then health flips with the log."""
    server = serve(started, *TRACED)
    with Client(server.address, retry=ONCE) as client:
        assert client.health() == "NOT_SERVING"
        with pytest.raises(UnavailableError, match="warming up") as caught:
            client.explain(b"")
        assert caught.value.retry_after_s
        client.wait_ready(120)
        assert client.health() == "SERVING"
        assert client.health("gradcam.v1.ExplanationService") == "SERVING"
        assert "Compiled efficientnet-lite0" in server.text
    assert server.stop() == 0


def test_sigterm_under_load_loses_no_accepted_request(
    started: list[RunningServer], cat_jpeg: bytes
) -> None:
    """Every answer is whole, every refusal is UNAVAILABLE, and the exit status is 0."""
    server = serve(started).wait_ready()
    address = server.address
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with Client(address, retry=ONCE) as client:
            while not stop.is_set():
                try:
                    assert client.explain(cat_jpeg).top.index == 285
                    outcomes["answered"] += 1
                except UnavailableError:
                    outcomes["unavailable"] += 1
                    time.sleep(0.005)
                except GradCamError as error:
                    outcomes[f"{type(error).__name__}: {error}"] += 1

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    while outcomes["answered"] < 50:
        time.sleep(0.01)
    status = server.stop()
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert status == 0
    assert set(outcomes) == {"answered", "unavailable"}, outcomes
    draining = re.search(r"Draining (\d+) requests", server.text)
    assert draining
    assert int(draining[1]) > 0, "there was nothing to drain"
    assert "Cutting off" not in server.text


def test_sigterm_during_a_stream_answers_what_was_read(
    started: list[RunningServer], cat_jpeg: bytes
) -> None:
    """A stream ends with UNAVAILABLE after its last answers; every image read has an outcome."""
    server = serve(started).wait_ready()
    with Client(server.address, retry=ONCE) as client:
        outcomes = client.explain_stream(cat_jpeg for _ in range(2000))
        seen = [next(outcomes) for _ in range(20)]
        server.process.send_signal(signal.SIGTERM)
        seen += list(outcomes)
    assert server.wait() == 0
    assert len(seen) == 2000
    failed = [outcome.error for outcome in seen if outcome.error]
    assert failed
    assert all(isinstance(error, UnavailableError) for error in failed)


def test_a_second_signal_ends_the_drain(started: list[RunningServer], images: Path) -> None:
    """A second Ctrl-C does not wait for a slow request."""
    server = serve(started, "--drain-timeout-s", "60").wait_ready()
    big = b"".join([(images / "cat.jpg").read_bytes()])
    with Client(server.address, retry=ONCE) as client, ThreadPoolExecutor(1) as pool:
        (engine,) = server.engines()
        engine.suspend()  # so that the request does not end
        slow = pool.submit(client.explain, big)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        assert server.stop(signal.SIGINT) == 1
        assert isinstance(slow.exception(), GradCamError)
    assert "Cutting off 1 requests" in server.text


def test_sigterm_while_warming_up_stops_at_once(started: list[RunningServer]) -> None:
    """SIGTERM during the compilation stops the server at once."""
    server = serve(started, *TRACED, "--batch-sizes", "1,2,4,8,16,32")
    assert server.address
    assert server.stop() == 0
    assert "Stopped before it was warm" in server.text


def test_queue_overflow_is_refused_with_a_time_to_retry(
    started: list[RunningServer], cat_jpeg: bytes
) -> None:
    """A full queue answers RESOURCE_EXHAUSTED at once; clients that retry are all served."""
    server = serve(started, "--max-queue-length", "2").wait_ready()

    def ask(retry: RetryPolicy) -> int | OverloadedError:
        with Client(server.address, retry=retry) as client:
            try:
                return client.explain(cat_jpeg).top.index
            except OverloadedError as error:
                return error

    with ThreadPoolExecutor(32) as pool:
        once = list(pool.map(ask, [ONCE] * 32))
        patient = list(pool.map(ask, [RetryPolicy(max_attempts=50, max_backoff_s=1)] * 32))
    refused = [answer for answer in once if isinstance(answer, OverloadedError)]
    assert refused
    assert all(error.retry_after_s for error in refused)
    assert {answer for answer in once if isinstance(answer, int)} == {285}
    assert patient == [285] * 32


def test_environment_variables_configure_and_flags_win(started: list[RunningServer]) -> None:
    """Every option has a variable, which a flag overrides."""
    server = RunningServer(
        "--batch-sizes",
        "1",
        GRADCAM_MODEL="efficientnet-lite0 resnet50",
        GRADCAM_WEIGHTS="random",
        GRADCAM_BATCH_SIZES="1,2,3",
        GRADCAM_MAX_TARGETS="2",
        GRADCAM_COMPILER="tensorflow",
    )
    started.append(server)
    server.wait_ready()
    with Client(server.address) as client:
        models = client.list_models()
    assert [model.name for model in models] == ["efficientnet-lite0", "resnet50"]
    assert {tuple(model.batch_sizes) for model in models} == {(1,)}
    assert {model.max_target_count for model in models} == {2}
    assert {(model.weights, model.random_weights) for model in models} == {("random, seed 0", True)}
    assert "random weights" in server.text


def run_serve(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GRADCAM, "serve", "--port", "0", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **variables},
        check=False,
    )


def test_missing_imagenet_weights_stop_the_server_with_the_ways_out(tmp_path: Path) -> None:
    """One message, without a traceback, names a file, the embedded model and random weights."""
    started = time.monotonic()
    proxy = "http://127.0.0.1:9"  # nothing listens there: no network, wherever the test runs
    ended = run_serve(KERAS_HOME=str(tmp_path), https_proxy=proxy, HTTPS_PROXY=proxy)
    assert ended.returncode == 1
    assert time.monotonic() - started < 60
    assert "Traceback" not in ended.stderr
    assert re.search(
        r"Error: .*--weights FILE.*--model efficientnet-lite0.*--weights random", ended.stderr
    )


def test_a_port_in_use_is_named() -> None:
    """The error names the port: two servers never share one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run_serve("--port", port)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-sizes", "1,two"), "'1,two' is not a list of positive numbers"),
        (("--batch-sizes", "0"), "not a list of positive numbers"),
        (("--port", "70000"), "0<=x<=65535"),
        (("--max-queue-length", "0"), "x>=1"),
        (("--compiler", "gcc"), "'auto', 'xla', 'tensorflow'"),
        (("--model", "alexnet"), "unknown model 'alexnet'; the models are"),
        ((*TRACED, "--warm", "gradcam@nope"), "no layer 'nope'"),
        ((*TRACED, "--weights", "a", "--weights", "b"), "each must be MODEL=VALUE"),
    ],
)
def test_bad_settings_are_refused_before_serving(options: tuple[str, ...], message: str) -> None:
    """The message says what is right, and the exit status is not 0."""
    ended = run_serve(*options)
    assert ended.returncode in {1, 2}
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
