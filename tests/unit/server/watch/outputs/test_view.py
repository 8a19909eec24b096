"""The view in a browser: a page, streams, and viewers that are slow."""

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from gradcam_server.batch.errors import OutputError
from gradcam_server.watch.frames import Pixels
from gradcam_server.watch.outputs.view import BrowserView
from support.watch_results import explained, failed, frame, gray, noise

TIMEOUT_S = 60


@pytest.fixture
def view() -> Iterator[BrowserView]:
    """A view of two sources on a free port."""
    opened = BrowserView(["clip", "<b>yard</b>"], 0)
    yield opened
    opened.close()


def port_of(view: BrowserView) -> int:
    """Returns the view's port."""
    port = urlsplit(view.url).port
    assert port
    return port


Get: TypeAlias = Callable[..., http.client.HTTPResponse]


@pytest.fixture
def get() -> Iterator[Get]:
    """Sends requests, each over a connection of its own, which is closed at the end."""
    with ExitStack() as stack:

        def send(view: BrowserView, path: str, host: str = "127.0.0.1") -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", port_of(view), timeout=TIMEOUT_S)
            stack.callback(connection.close)
            connection.request("GET", path, headers={"Host": f"{host}:{port_of(view)}"})
            return stack.enter_context(connection.getresponse())

        yield send


def next_picture(stream: http.client.HTTPResponse) -> Pixels | None:
    """Reads the next picture of a stream, RGB; None at the end."""
    length = 0
    while line := stream.readline():
        if line.startswith(b"Content-Length:"):
            length = int(line.split()[1])
        if line == b"\r\n" and length:
            data = np.frombuffer(stream.read(length), np.uint8)
            bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
            return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    return None


def test_the_page_lists_the_sources(view: BrowserView, get: Get) -> None:
    """Each with its stream; names are text, never markup."""
    response = get(view, "/")
    page = response.read().decode()
    assert response.status == 200
    assert "script" not in page
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert 'src="streams/0.mjpeg"' in page
    assert 'src="streams/1.mjpeg"' in page
    assert "&lt;b&gt;yard&lt;/b&gt;" in page
    assert "<b>" not in page


def test_a_stream_shows_results_as_they_come(view: BrowserView, get: Get) -> None:
    """Each as a JPEG with heat, of its own source alone."""
    stream = get(view, "/streams/0.mjpeg")
    assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace; boundary=")
    for level in (40, 200):
        view.write(failed(frame(gray(0), source="<b>yard</b>")))
        view.write(failed(frame(gray(level))))
        picture = next_picture(stream)
        assert picture is not None
        assert picture.shape == (120, 160, 3)
        assert abs(picture[:40].mean() - level) < 4
    view.write(explained(frame(gray(0)), heat=np.ones((1, 1), np.float32)))
    picture = next_picture(stream)
    assert picture is not None
    red, green, blue = picture[:40].reshape(-1, 3).mean(0)
    assert red > 30
    assert max(green, blue) < 15


def test_a_late_viewer_sees_the_last_result(view: BrowserView, get: Get) -> None:
    """A source that has paused or ended is not a black picture."""
    view.write(failed(frame(gray(77))))
    picture = next_picture(get(view, "/streams/0.mjpeg"))
    assert picture is not None
    assert abs(picture[:40].mean() - 77) < 4


def test_a_slow_viewer_gets_the_newest_picture(view: BrowserView, get: Get) -> None:
    """It holds nobody up, nothing queues for it, and what it has missed is left out."""
    stream = get(view, "/streams/0.mjpeg")
    other = get(view, "/streams/0.mjpeg")
    large = noise((720, 1280))
    count = 40
    for number in range(count):
        view.write(failed(frame(large, number)))
        assert next_picture(other) is not None
    view.write(failed(frame(gray(200, (720, 1280)), count)))
    seen = 0
    while (picture := next_picture(stream)) is not None:
        seen += 1
        if picture[:200].std() < 5:
            break
    assert picture is not None
    assert seen < count / 2


def test_another_name_of_this_machine_is_refused(view: BrowserView, get: Get) -> None:
    """A site whose name is turned to 127.0.0.1 does not see the cameras."""
    assert get(view, "/", "evil.example").status == 400
    assert get(view, "/streams/0.mjpeg", "evil.example").status == 400
    assert get(view, "/", "localhost").status == 200


def test_it_listens_on_this_machine_alone(view: BrowserView) -> None:
    """Cameras are private."""
    assert urlsplit(view.url).hostname == "127.0.0.1"
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port_of(view)))


def test_an_unknown_stream_is_not_found(view: BrowserView, get: Get) -> None:
    """The answer says how many there are."""
    response = get(view, "/streams/2.mjpeg")
    assert (response.status, response.read()) == (404, b"there are 2 sources\n")


def test_closing_ends_the_streams(get: Get) -> None:
    """Also of viewers that read nothing; no thread or port is left."""
    view = BrowserView(["clip"], 0)
    port = port_of(view)
    stream, _stalled = get(view, "/streams/0.mjpeg"), get(view, "/streams/0.mjpeg")
    view.write(failed(frame(noise((1080, 1920)))))
    assert next_picture(stream) is not None
    view.close()
    assert next_picture(stream) is None
    assert "browser view" not in {thread.name for thread in threading.enumerate()}
    BrowserView(["clip"], port).close()
    view.write(failed())  # after the end it is dropped


def test_a_port_in_use_is_an_error(view: BrowserView) -> None:
    """It names the option and the remedy."""
    with pytest.raises(OutputError, match=r"--show \d+: the port cannot be used.*name another"):
        BrowserView(["clip"], port_of(view))


def test_viewers_that_leave_are_forgotten(view: BrowserView) -> None:
    """Though no frame follows: a source may pause for days, and descriptors are few."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port_of(view)), TIMEOUT_S) as viewer:
            viewer.sendall(b"GET /streams/0.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert viewer.recv(100).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + TIMEOUT_S
    while descriptors() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
