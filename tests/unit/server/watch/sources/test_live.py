"""Live sources: the newest frame, outages, secrets."""

import logging
import socket
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gradcam_server.watch.sources import backoff as backoff_module
from gradcam_server.watch.sources.backoff import Backoff
from gradcam_server.watch.sources.events import Event, SourceEvent
from gradcam_server.watch.sources.live import LiveVideo
from gradcam_server.watch.sources.naming import parse_sources
from support.mjpeg import mjpeg_camera
from support.reading import reading
from support.videos import number_of, write_video


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses a tenth as long."""
    monkeypatch.setattr(backoff_module, "FIRST_S", 0.05)
    monkeypatch.setattr(backoff_module, "MAX_S", 0.4)


def _live(
    url: str,
    events: list[SourceEvent] | None = None,
    fps: float | None = None,
    timeout_s: float = 2,
) -> LiveVideo:
    (spec,) = parse_sources([f"cam={url}"])
    return LiveVideo(spec, fps, (events if events is not None else []).append, timeout_s)


def test_outage_is_survived_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A camera that is killed and started again goes on; an outage is two lines of the log."""
    caplog.set_level(logging.INFO)
    events: list[SourceEvent] = []
    with mjpeg_camera() as camera:
        with reading(_live(f"http://127.0.0.1:{camera.port}/", events)) as read:
            for outages in (1, 2):
                read.wait_for(len(read.frames) + 3)
                camera.kill()
                time.sleep(0.7)  # several attempts fail
                camera.start()
                read.wait(lambda n=outages: len(_of(events, Event.REOPENED)) == n)  # type: ignore[misc]
            read.wait_for(len(read.frames) + 3)
        numbers = [frame.number for frame in read.frames]
    assert numbers == sorted(set(numbers))
    assert all(frame.is_live and frame.source == "cam" for frame in read.frames)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("is gone: " in message for message in messages) == 2
    assert sum("cam is back after" in message for message in messages) == 2
    assert len(messages) == 4


def test_source_that_is_not_there_yet() -> None:
    """A stream that cannot be opened at the start is read when it comes up."""
    with mjpeg_camera() as camera:
        camera.kill()
        with reading(_live(f"http://127.0.0.1:{camera.port}/")) as read:
            time.sleep(0.3)
            assert not read.frames
            camera.start()
            read.wait_for(3)
        assert read.frames[0].number < 3  # some came while it was opened


def test_slow_reader_gets_the_newest_frame() -> None:
    """Frames that nobody took are shed at the source, not queued."""
    events: list[SourceEvent] = []
    with mjpeg_camera(fps=50) as camera:
        source = _live(f"http://127.0.0.1:{camera.port}/", events)
        frames = source.frames()
        next(frames)
        time.sleep(1)
        next(frames)  # may have been there before the pause ended
        number, now = number_of(next(frames).image), camera.number_now()
        source.close()
        assert list(frames) == []
    # A queue would give a frame from the begin of the pause, about 50 frames old.
    assert (now - number) % 256 <= 25
    assert len(_of(events, Event.SHED)) > 5


def test_fps_limits_a_live_source() -> None:
    """With a limit frames come at that rate at most, and their numbers still count all."""
    with (
        mjpeg_camera(fps=50) as camera,
        reading(_live(f"http://127.0.0.1:{camera.port}/", fps=5)) as read,
    ):
        read.wait_for(6)
    times = [frame.read_at for frame in read.frames[:6]]
    assert times[-1] - times[0] > 0.75
    assert read.frames[5].number >= 10


def test_silent_source_is_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """A source that stays connected but sends nothing is opened again after the time-out."""
    events: list[SourceEvent] = []
    with (
        mjpeg_camera() as camera,
        reading(_live(f"http://127.0.0.1:{camera.port}/", events, timeout_s=0.5)) as read,
    ):
        read.wait_for(2)
        camera.hangs = True
        read.wait(lambda: "is gone" in caplog.text)
        camera.hangs = False
        read.wait(lambda: bool(_of(events, Event.REOPENED)))


def test_segments_are_read_at_their_pace(tmp_path: Path) -> None:
    """Of HLS, whose segments come at once, frames come evenly, as they were taken."""
    write_video(
        tmp_path / "live.m3u8",
        [number / 10 for number in range(40)],
        options={"g": "10", "bf": "0"},
        container_options={"hls_time": "1", "hls_list_size": "0"},
    )
    playlist = (tmp_path / "live.m3u8").read_text()
    (tmp_path / "live.m3u8").write_text(playlist.replace("#EXT-X-ENDLIST\n", ""))
    handler = partial(_QuietFiles, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, args=(0.02,)).start()
        try:
            url = f"http://127.0.0.1:{files.server_address[1]}/live.m3u8"
            with reading(_live(url)) as read:
                read.wait_for(15)
        finally:
            files.shutdown()
    numbers = [number_of(frame.image) for frame in read.frames[:15]]
    times = [frame.read_at for frame in read.frames[:15]]
    assert numbers == sorted(set(numbers))
    # The first may be paced anew: what follows runs at ten frames per second.
    seconds = (numbers[-1] - numbers[2]) / 10
    assert times[-1] - times[2] == pytest.approx(seconds, abs=0.5)
    _join_readers()


class _QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_close_does_not_wait_for_the_network() -> None:
    """close() ends a source within a second while it waits for a server that never answers."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        # reading() checks the second.
        with reading(_live(f"http://127.0.0.1:{deaf.getsockname()[1]}/")) as read:
            time.sleep(0.3)
        assert not read.frames
    _join_readers()


@pytest.mark.parametrize(
    "url",
    [
        "http://admin:s3cret@127.0.0.1:{port}/video?key=s3cret",
        "rtsp://admin:s3cret@127.0.0.1:{port}/user=admin&password=s3cret",
        "http://127.0.0.1:{port}/s3cret.m3u8",
    ],
)
def test_credentials_never_reach_logs(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is logged of an outage names host and port, and nothing that may be secret."""
    caplog.set_level(logging.DEBUG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    events: list[SourceEvent] = []
    with reading(_live(url.format(port=port), events)) as read:
        read.wait(lambda: "cannot be read" in caplog.text)
    assert f"127.0.0.1:{port}) cannot be read: Connection refused" in caplog.text
    assert "s3cret" not in caplog.text + repr(events)
    assert "admin" not in caplog.text + repr(events)


def test_credentials_reach_the_camera() -> None:
    """User and password of a URL are sent to a camera that asks for them."""
    with mjpeg_camera() as camera:
        camera.password = "admin:s3cret"
        with reading(_live(f"http://admin:s3cret@127.0.0.1:{camera.port}/")) as read:
            read.wait_for(1)


def test_wrong_password_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A camera that refuses the password is named with that reason, and asked again."""
    with mjpeg_camera() as camera:
        camera.password = "admin:changed"
        with reading(_live(f"http://admin:s3cret@127.0.0.1:{camera.port}/")) as read:
            read.wait(lambda: "cannot be read" in caplog.text)
            camera.password = "admin:s3cret"
            read.wait_for(1)
    assert "401 Unauthorized" in caplog.text
    assert "s3cret" not in caplog.text


def test_camera_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    """A device that does not exist is waited for, and the log says which and why."""
    with reading(_live("99")) as read:
        read.wait(lambda: "cannot be read" in caplog.text)
    assert "cam (/dev/video99) cannot be read: No such file or directory" in caplog.text


def test_pauses_grow_and_are_random() -> None:
    """Pauses double up to the longest, each random between its half and itself."""
    backoff = Backoff()
    pauses = [backoff.pause_s() for _ in range(8)]
    bounds = [0.05, 0.1, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4]
    assert all(b / 2 <= p <= b for p, b in zip(pauses, bounds, strict=True))
    assert len(set(pauses)) == len(pauses)
    backoff.reset()
    assert backoff.pause_s() <= 0.05


def test_no_thread_is_left() -> None:
    """A source that was closed leaves no thread behind."""
    with mjpeg_camera() as camera:
        with reading(_live(f"http://127.0.0.1:{camera.port}/")) as read:
            read.wait_for(2)
        _join_readers()


def _join_readers() -> None:
    for thread in threading.enumerate():
        if thread.name == "watch cam":
            thread.join(10)
            assert not thread.is_alive()


def _of(events: list[SourceEvent], event: Event) -> list[SourceEvent]:
    return [each for each in events if each.event is event]
