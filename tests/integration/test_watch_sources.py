"""Sources served by other processes, which are killed and started again in mid-run."""

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest

from gradcam_server.watch.sources.events import Event, SourceEvent
from gradcam_server.watch.sources.naming import parse_sources
from gradcam_server.watch.sources.opening import open_source
from support.mjpeg import mjpeg_camera
from support.reading import reading
from support.videos import number_of, numbered, write_video

_RTSP_SERVER = Path(__file__).parents[1] / "support" / "rtsp_server.py"
_DEBIANS_PYTHON = "/usr/bin/python3"
_HAS_GSTREAMER = """
import gi
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
raise SystemExit(not all(map(Gst.ElementFactory.find, ("qtdemux", "rtph264pay"))))
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds of numbered frames, ten per second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    times = [number / 10 for number in range(120)]
    return write_video(path, times, options={"g": "10", "bf": "0"}, size=(240, 320))


@contextmanager
def _rtsp(clip: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serves a clip, at a free port if it is 0."""
    process = subprocess.Popen(
        [_DEBIANS_PYTHON, str(_RTSP_SERVER), str(clip), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline().split()
        assert ready[:1] == ["ready"]
        yield process, int(ready[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def gstreamer() -> None:
    """Skips the test where Debian's GStreamer with its RTSP server is not installed."""
    if (
        not shutil.which(_DEBIANS_PYTHON)
        or subprocess.run(
            [_DEBIANS_PYTHON, "-c", _HAS_GSTREAMER], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-good of Debian")


@pytest.mark.usefixtures("gstreamer")
def test_rtsp_server_killed_in_mid_run(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An RTSP stream is read over TCP as it runs, and again after its server was killed."""
    caplog.set_level(logging.INFO)
    events: list[SourceEvent] = []
    with _rtsp(clip) as (process, port):
        (spec,) = parse_sources([f"cam=rtsp://127.0.0.1:{port}/live"])
        with reading(open_source(spec, report=events.append)) as read:
            read.wait_for(25)
            process.kill()
            read.wait(lambda: "cam (rtsp://127.0.0.1" in caplog.text)
            count = len(read.frames)
            with _rtsp(clip, port):
                read.wait_for(count + 10)
    shown = [number_of(frame.image) for frame in read.frames]
    first, second = shown[:count], shown[count:]
    for numbers in (first, second):
        assert numbers == sorted(set(numbers))
    assert second[0] < first[-1] + 10  # it begins anew
    assert read.frames[0].image.shape == (240, 320, 3)
    # In real time: 25 frames take 2.5 s, but those of a stall of a busy machine come together.
    assert read.frames[count - 1].read_at - read.frames[0].read_at > 0.4
    assert [event.event for event in events if event.event is not Event.SHED] == [Event.REOPENED]


@pytest.mark.usefixtures("gstreamer")
def test_rtsp_stream_that_ends_is_opened_again(tmp_path: Path) -> None:
    """A stream whose server says that it has ended is asked again."""
    short = write_video(
        tmp_path / "short.mp4", [number / 10 for number in range(12)], options={"bf": "0"}
    )
    events: list[SourceEvent] = []
    with _rtsp(short) as (_, port):
        (spec,) = parse_sources([f"rtsp://127.0.0.1:{port}/live"])
        with reading(open_source(spec, report=events.append)) as read:
            read.wait(lambda: any(event.event is Event.REOPENED for event in events))
    numbers = [frame.number for frame in read.frames]
    assert numbers == sorted(set(numbers))


def test_http_stream_killed_in_mid_run(caplog: pytest.LogCaptureFixture) -> None:
    """An MJPEG stream over HTTP goes on, with the newest frames, after its server was away."""
    caplog.set_level(logging.INFO)
    with mjpeg_camera() as camera:
        (spec,) = parse_sources([f"http://127.0.0.1:{camera.port}/"])
        with reading(open_source(spec)) as read:
            read.wait_for(10)
            camera.kill()
            read.wait(lambda: "is gone" in caplog.text)
            before = camera.number_now()
            time.sleep(0.5)
            camera.start()
            count = len(read.frames)
            read.wait_for(count + 10)
            late = (camera.number_now() - number_of(read.frames[-1].image)) % 256
    assert late <= 20  # a second
    assert (number_of(read.frames[count + 1].image) - before) % 256 < 128
    assert "is back after" in caplog.text


def test_file_read_at_a_rate(clip: Path) -> None:
    """A video file is read to its end, at the rate that is asked for."""
    (spec,) = parse_sources([str(clip)])
    with reading(open_source(spec, fps=1)) as read:
        read.thread.join(20)
    assert [number_of(frame.image) for frame in read.frames] == list(range(0, 120, 10))


_FILL = """
import os, pathlib, sys, time
folder, data = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).read_bytes()
for number in range(40):
    name = f"{number:03}.png"
    if number % 2:
        (folder / (name + ".part")).write_bytes(data)
        os.rename(folder / (name + ".part"), folder / name)
    else:
        with open(folder / name, "wb") as file:
            file.write(data[:50])
            file.flush()
            time.sleep(0.02)
            file.write(data[50:])
    time.sleep(0.02)
"""
_WATCH = """
import sys
from pathlib import Path
from gradcam_server.watch.sources.naming import parse_sources
from gradcam_server.watch.sources.opening import open_source
source = open_source(parse_sources([sys.argv[1]])[0], journal=Path(sys.argv[2]))
for frame in source.frames():
    print(frame.path.name, flush=True)
    source.done(frame)
"""


def test_folder_filled_by_another_process_while_the_watcher_is_killed(
    tmp_path: Path,
) -> None:
    """Killed again and again (SIGKILL), the watcher loses no file, and repeats none that is done.

    A file whose line was written just before the kill may come again: its result was written, but
    not yet noted.
    """
    folder, image = tmp_path / "in", tmp_path / "image.png"
    folder.mkdir()
    cv2.imwrite(str(image), numbered(1))
    lines: list[str] = []
    restarts = 0
    with subprocess.Popen([sys.executable, "-c", _FILL, str(folder), str(image)]) as filler:
        while len(set(lines)) < 40 and restarts < 10:
            watcher = subprocess.Popen(
                [sys.executable, "-c", _WATCH, str(folder), str(tmp_path / "journal")],
                stdout=subprocess.PIPE,
                text=True,
            )
            with watcher:
                assert watcher.stdout is not None
                for line in watcher.stdout:
                    lines.append(line.strip())
                    # The first ones are killed in mid-run.
                    if restarts < 2 and len(lines) >= 12 * (restarts + 1):
                        break
                    if len(set(lines)) == 40:
                        break
                watcher.kill()
                # What was printed before the kill was seen, too.
                lines += watcher.stdout.read().split()
            restarts += 1
        assert filler.wait(20) == 0
    assert set(lines) == {f"{number:03}.png" for number in range(40)}
    assert len(lines) - 40 <= restarts - 1
