"""The synchronous client against a real server in this process."""

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from gradcam_client import (
    CallCancelledError,
    Client,
    DeadlineExceededError,
    MessageTooLargeError,
    NotFoundError,
    Outcome,
    OverloadedError,
    RetryPolicy,
    ServerError,
    UnavailableError,
)
from unit.client.fake_server import FakeServer

CODE = grpc.StatusCode
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def client(server: FakeServer, retry: RetryPolicy) -> Iterator[Client]:
    with Client(server.target, timeout_s=20, retry=retry) as client:
        yield client


def images(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def ends(outcomes: Iterator[Outcome]) -> list[Any]:
    """The number or the error class of each outcome."""
    return [one.result.top.index if one.result else type(one.error) for one in outcomes]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


# One image.


def test_a_full_queue_is_tried_again(client: Client, server: FakeServer) -> None:
    """A refusal with a retry delay is followed by another attempt, not before that delay."""
    server.script.append(server.fail(CODE.RESOURCE_EXHAUSTED, retry_after_s=0.1))
    started = time.monotonic()
    assert client.explain(b"7").top.index == 7
    assert time.monotonic() - started >= 0.1
    assert len(server.requests) == 2


def test_an_absent_server_is_tried_again(client: Client, server: FakeServer) -> None:
    """A server that comes back in time causes no error."""
    server.script.extend([server.fail(CODE.UNAVAILABLE)] * 2)
    assert client.explain(b"7").top.index == 7


def test_attempts_end(client: Client, server: FakeServer) -> None:
    """After the policy's attempts the last error is raised."""
    server.script.extend(server.fail(CODE.UNAVAILABLE, f"failure {n}") for n in range(1, 9))
    with pytest.raises(UnavailableError, match="failure 4"):
        client.explain(b"7")
    assert len(server.requests) == 4


def test_own_message_limit(server: FakeServer) -> None:
    """max_message_bytes limits requests."""
    with (
        Client(server.target, max_message_bytes=100) as client,
        pytest.raises(MessageTooLargeError),
    ):
        client.explain(b"7" + b"x" * 100)
    assert server.requests == []


def test_the_deadline_is_kept(client: Client, server: FakeServer) -> None:
    """A server that does not answer in time ends in an error, not in another attempt."""
    server.script.append(server.hang)
    with pytest.raises(DeadlineExceededError):
        client.explain(b"7", timeout_s=0.2)
    assert len(server.requests) == 1


def test_the_deadline_covers_the_pauses(client: Client, server: FakeServer) -> None:
    """A pause beyond the deadline is not waited for: the refusal is raised at once."""
    server.script.append(server.fail(CODE.RESOURCE_EXHAUSTED, retry_after_s=60))
    started = time.monotonic()
    with pytest.raises(OverloadedError) as raised:
        client.explain(b"7", timeout_s=30)
    assert raised.value.retry_after_s == 60
    assert time.monotonic() - started < 10


def test_no_server_is_unavailable(retry: RetryPolicy) -> None:
    """A refused connection ends in UnavailableError after the attempts."""
    with Client(NOWHERE, retry=retry) as client, pytest.raises(UnavailableError):
        client.explain(b"7")


def test_bad_input_is_not_sent(client: Client, server: FakeServer, tmp_path: Path) -> None:
    """Mistakes found before sending raise Python's own errors."""
    with pytest.raises(FileNotFoundError):
        client.explain(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match="resize"):
        client.explain(b"7", resize="crop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout_s"):
        client.explain(b"7", timeout_s=0)
    assert server.requests == []


def test_a_given_channel_stays_open(server: FakeServer) -> None:
    """The client closes only a channel of its own."""
    with grpc.insecure_channel(server.target) as channel:
        with Client(channel=channel) as client:
            client.explain(b"7")
        with Client(channel=channel) as client:
            assert client.explain(b"8").top.index == 8


# Many images.


def test_no_images_no_call(client: Client, server: FakeServer) -> None:
    """Nothing to explain ends at once, without a call."""
    assert list(client.explain_stream([])) == []
    assert server.received == []


def test_a_failing_server_is_not_asked_for_ever(client: Client, server: FakeServer) -> None:
    """A stream that ends in an error that is not retryable fails each image once."""
    server.streams.extend([server.break_after(0, CODE.INTERNAL)] * 9)
    assert ends(client.explain_stream(images(3))) == [ServerError] * 3


def test_an_infinite_input_is_consumed_lazily(client: Client, server: FakeServer) -> None:
    """At most max_in_flight images are ahead, in the client and in the server."""
    pulled = itertools.count()
    pulled_count = 0

    def endless() -> Iterator[bytes]:
        nonlocal pulled_count
        for number in pulled:
            pulled_count += 1
            yield b"%d" % number

    server.streams.append(server.reverse_in_groups(3))
    outcomes = client.explain_stream(endless(), max_in_flight=6)
    for count, outcome in enumerate(itertools.islice(outcomes, 100), start=1):
        assert outcome.unwrap().top.index == count - 1
        assert pulled_count <= count + 6
    outcomes.close()
    assert server.max_in_flight <= 6


def test_a_slow_input_delays_no_answer(client: Client) -> None:
    """An answer is yielded while the input still waits for its next image."""
    go_on = threading.Event()

    def waiting() -> Iterator[bytes]:
        yield b"0"
        assert go_on.wait(10)
        yield b"1"

    outcomes = client.explain_stream(waiting())
    assert next(outcomes).unwrap().top.index == 0
    go_on.set()
    assert ends(outcomes) == [1]


def test_an_error_of_the_input_is_raised(client: Client) -> None:
    """An exception of the caller's iterable reaches the caller, after the outcomes before it."""

    def failing() -> Iterator[bytes]:
        yield from images(3)
        raise LookupError("the caller's")

    outcomes = client.explain_stream(failing())
    assert ends(itertools.islice(outcomes, 3)) == [0, 1, 2]
    with pytest.raises(LookupError, match="the caller's"):
        next(outcomes)


def test_leaving_early_ends_the_call(client: Client, server: FakeServer) -> None:
    """Leaving the loop ends the call at the server and leaves no thread behind."""
    before = client_threads()
    for outcome in client.explain_stream(map(b"%d".__mod__, itertools.count())):
        if outcome.unwrap().top.index == 10:
            break
    assert eventually(server.stream_over.is_set)
    assert eventually(lambda: client_threads() <= before)


def test_a_stream_that_is_not_iterated_starts_nothing(client: Client, server: FakeServer) -> None:
    """Making a stream without a loop over it costs neither a call nor a thread."""
    before = client_threads()
    client.explain_stream(images(3))
    assert client_threads() <= before
    assert server.received == []


def test_closing_the_client_ends_its_streams(server: FakeServer, retry: RetryPolicy) -> None:
    """A stream whose client is closed raises instead of waiting."""
    server.streams.append(server.never_answer)
    client = Client(server.target, retry=retry)
    outcomes = client.explain_stream(images(3), timeout_s=20)
    timer = threading.Timer(0.3, client.close)
    timer.start()
    with pytest.raises(CallCancelledError, match="the client is closed"):
        next(outcomes)
    timer.join()


def test_closing_the_client_cancels_its_calls(server: FakeServer) -> None:
    """A call whose client is closed is cancelled."""
    server.script.append(server.hang)
    client = Client(server.target)
    timer = threading.Timer(0.3, client.close)
    timer.start()
    with pytest.raises(CallCancelledError):
        client.explain(b"7", timeout_s=20)
    timer.join()


def test_closing_the_client_ends_a_hedged_call(server: FakeServer) -> None:
    """Both attempts of a call end when the client is closed."""
    server.script.extend([server.hang] * 2)
    client = Client(server.target)
    timer = threading.Timer(0.3, client.close)
    timer.start()
    with pytest.raises(CallCancelledError):
        client.explain(b"7", timeout_s=20, hedge_after_s=0.05)
    timer.join()


@pytest.mark.parametrize("single", ["cat.jpg", b"jpeg", Path("cat.jpg"), np.zeros((4, 4, 3))])
def test_one_image_is_not_many(client: Client, single: Any) -> None:
    """A single image is refused at once: a str would be taken for a list of letters."""
    with pytest.raises(TypeError, match="explain takes one image"):
        client.explain_stream(single)


def test_wrong_options_of_a_stream_are_raised_at_once(client: Client) -> None:
    """A wrong option is one error, not one for each image."""
    with pytest.raises(ValueError, match="method"):
        client.explain_stream(images(3), method="lime")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_in_flight"):
        client.explain_stream(images(3), max_in_flight=0)
    with pytest.raises(ValueError, match="timeout_s"):
        client.explain_stream(images(3), timeout_s=-1)


# Models and health.


def test_models_are_described(client: Client, server: FakeServer) -> None:
    """Models are listed and described, with retries like any call."""
    server.script.append(server.fail(CODE.UNAVAILABLE))
    assert [model.name for model in client.list_models()] == ["first", "second"]
    assert client.get_model().name == "first"
    assert client.get_model("second").name == "second"


def test_health_is_told(client: Client, server: FakeServer) -> None:
    """Health is the server's status, and an unknown service is NotFoundError."""
    assert client.health() == "SERVING"
    server.set_serving(False)
    assert client.health() == "NOT_SERVING"
    with pytest.raises(NotFoundError):
        client.health("no.such.Service")


def test_a_client_waits_until_the_server_is_ready(client: Client, server: FakeServer) -> None:
    """Waiting ends when the server serves."""
    server.set_serving(False)
    timer = threading.Timer(0.3, server.set_serving, [True])
    timer.start()
    client.wait_ready(20)
    assert client.health() == "SERVING"
    timer.join()


def test_waiting_for_a_server_has_a_limit(client: Client, server: FakeServer) -> None:
    """Waiting for a server that does not get ready ends in an error with its last status."""
    server.set_serving(False)
    with pytest.raises(DeadlineExceededError, match="NOT_SERVING"):
        client.wait_ready(0.3)
    with Client(NOWHERE) as nobody, pytest.raises(DeadlineExceededError, match="nothing listens"):
        nobody.wait_ready(0.3)


# The package.


def test_the_client_needs_no_server_package() -> None:
    """Importing the client loads neither TensorFlow, image libraries nor the server."""
    script = """
import sys, gradcam_client
unwanted = {"tensorflow", "keras", "cv2", "PIL", "click", "rich", "gradcam_server"}
sys.exit(str(sorted(unwanted & sys.modules.keys())) if unwanted & sys.modules.keys() else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def client_threads() -> set[threading.Thread]:
    """The threads that are not the fake server's."""
    return {
        thread
        for thread in threading.enumerate()
        if not thread.name.startswith("ThreadPoolExecutor")
    }
