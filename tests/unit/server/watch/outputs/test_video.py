"""MP4 files: time stamps, sizes, names, and what is left after the end of the process."""

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
from av.codec.codec import UnknownCodecError

from gradcam_server.batch.errors import OutputError
from gradcam_server.watch.frames import Frame
from gradcam_server.watch.outputs import video
from gradcam_server.watch.outputs.video import VideoFile, VideoOutput, fit, paths_of
from support.watch_results import explained, failed, frame, gray

SIZE = (64, 96)


def shown(level: int, time_s: float, size: tuple[int, int] = SIZE, **changes: Any) -> Frame:
    """Makes a frame of one gray level."""
    return frame(gray(level, size), time_s=time_s, **changes)


def write(path: Path, frames: list[Frame]) -> None:
    """Writes frames without heat."""
    file = VideoFile(path, frames[0])
    for one in frames:
        file.add(one.image, one.time_s)
    file.close()


def read(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Returns the times in seconds and the pictures of a video."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    return (
        [float(one.pts * one.time_base) for one in decoded],  # type: ignore[operator]
        [one.to_ndarray(format="rgb24") for one in decoded],
    )


def top_boxes(path: Path) -> list[bytes]:
    """Returns the kinds of the outermost boxes of an MP4 file."""
    data, position, kinds = path.read_bytes(), 0, []
    while position < len(data):
        size = int.from_bytes(data[position : position + 4])
        kinds.append(data[position + 4 : position + 8])
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16])
        position += size
    return kinds


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("begin_s", [0.0, 1.7e9])
def test_time_stamps_are_those_of_the_source(tmp_path: Path, begin_s: float, is_live: bool) -> None:
    """A variable frame rate is kept, from the first frame on; the file is H.264 for any player."""
    times = [0, 1 / 30, 0.1, 0.5, 0.5417, 3.25, 60, 60.01]
    frames = [shown(20 * n, begin_s + time, is_live=is_live) for n, time in enumerate(times)]
    write(tmp_path / "a.mp4", frames)
    read_times, pictures = read(tmp_path / "a.mp4")
    np.testing.assert_allclose(read_times, times, atol=1e-5)
    for number, picture in enumerate(pictures):
        assert abs(picture.mean() - 20 * number) < 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_colours_are_kept(tmp_path: Path) -> None:
    """The file says by which matrix they were converted."""
    colors = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (250, 250, 250)]
    images = [np.full((*SIZE, 3), color, np.uint8) for color in colors]
    write(tmp_path / "a.mp4", [frame(image, n) for n, image in enumerate(images)])
    for picture, color in zip(read(tmp_path / "a.mp4")[1], colors, strict=True):
        np.testing.assert_allclose(picture.reshape(-1, 3).mean(0), color, atol=6)


def test_the_end_of_a_file_gives_it_an_index(tmp_path: Path) -> None:
    """Players seek in it; a live file stays fragmented, so that its writer needs no memory."""
    times = [n / 5 for n in range(30)]
    write(tmp_path / "file.mp4", [shown(0, time) for time in times])
    write(tmp_path / "live.mp4", [shown(0, time, is_live=True) for time in times])
    assert b"moof" not in top_boxes(tmp_path / "file.mp4")
    live = top_boxes(tmp_path / "live.mp4")
    assert live.count(b"moof") >= 5
    assert b"mfra" not in live, "no list of all fragments either"
    assert len(read(tmp_path / "file.mp4")[0]) == len(read(tmp_path / "live.mp4")[0]) == 30


@pytest.mark.parametrize("size", [(63, 95), (64, 95), (1, 1), (17, 33)])
def test_odd_sizes_become_even(tmp_path: Path, size: tuple[int, int]) -> None:
    """By one repeated row or column, as H.264's colours are half as large."""
    write(tmp_path / "a.mp4", [shown(150, n, size) for n in range(3)])
    pictures = read(tmp_path / "a.mp4")[1]
    assert [one.shape for one in pictures] == [
        (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    ] * 3
    assert all(abs(one.astype(int) - 150).max() < 4 for one in pictures)


def test_the_pictures_of_a_video_are_their_own(tmp_path: Path) -> None:
    """Each is as it was drawn, though all are drawn into the same memory, whatever their size."""
    output = VideoOutput(tmp_path / "a.mp4", ["a", "b"])
    for number in range(24):
        size = (64, 96 + 32 * (number % 2))
        output.write(failed(shown(10 * number, number, size, source="ab"[number % 2])))
    output.close()
    for first, name in enumerate("ab"):
        times, pictures = read(output.paths[name])
        np.testing.assert_allclose(times, np.arange(12) * 2, atol=1e-5)
        levels = [picture[:20].mean() for picture in pictures]
        np.testing.assert_allclose(levels, 10 * np.arange(first, 24, 2), atol=3)


def test_a_changed_size_is_scaled_to_the_first(tmp_path: Path) -> None:
    """A camera that comes back with another resolution goes on in the same file, undistorted."""
    output = VideoOutput(tmp_path / "a.mp4", ["clip"])
    sizes = [SIZE, (128, 192), (32, 200), (65, 96), SIZE]
    for number, size in enumerate(sizes):
        output.write(failed(shown(200, number, size)))
    output.close()
    pictures = read(tmp_path / "a.mp4")[1]
    assert [one.shape for one in pictures] == [(*SIZE, 3)] * 5
    wide = pictures[2].mean(2)
    assert wide[: 64 // 2 - 12].max() < 20  # black above and below
    assert wide[64 // 2 - 3, 80] > 180


def test_fitting_keeps_the_shape() -> None:
    """What is left over is black, in equal parts at both sides."""
    fitted = fit(gray(200, (50, 50)), (96, 64))
    np.testing.assert_array_equal(np.nonzero(fitted[30, :, 0])[0], np.arange(16, 80))


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any, Literal
from gradcam_server.watch.outputs.video import VideoOutput
from support.watch_results import explained, frame, noise
output = VideoOutput(Path(sys.argv[1]), ["clip"])
for number in range(250):
    output.write(explained(frame(noise((64, 96), number), number, is_live=sys.argv[2] == "live")))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["live", "file"])
def test_a_file_is_readable_after_kill_9(tmp_path: Path, kind: str) -> None:
    """All of its 10 seconds but the last one are there, in order."""
    path = tmp_path / "a.mp4"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), kind], cwd=Path(__file__).parents[4], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    times, _ = read(path)
    assert 220 <= len(times) <= 250
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-5)


def test_a_clock_that_is_set_does_not_end_the_file(tmp_path: Path) -> None:
    """Time stamps grow whatever the clock does: back by a day, on by 50 years, the same twice."""
    times = [1e6, 1e6 + 1, 1e6 + 1, 1e6 - 86400, 1e6 - 86399, 1.7e9, 1.7e9 + 2]
    write(tmp_path / "a.mp4", [shown(9, time, is_live=True) for time in times])
    steps = np.diff(read(tmp_path / "a.mp4")[0])
    assert (steps > 0).all()
    np.testing.assert_allclose(steps, [1, 0, 0, 1, 3600, 2], atol=1e-3)


def test_each_source_has_its_file(tmp_path: Path) -> None:
    """The frames of several sources are not mixed."""
    output = VideoOutput(tmp_path / "out.mp4", ["door", "yard"])
    for number in range(6):
        name = "yard" if number % 3 else "door"
        output.write(explained(shown(50, number, source=name)))
    output.close()
    output.close()
    assert len(read(tmp_path / "out-door.mp4")[0]) == 2
    assert len(read(tmp_path / "out-yard.mp4")[0]) == 4


@pytest.mark.parametrize(
    ("output", "sources", "names"),
    [
        ("out.mp4", ["a"], ["out.mp4"]),
        ("new/out.MP4", ["a"], ["new/out.MP4"]),
        ("out.mp4", ["a", "b"], ["out-a.mp4", "out-b.mp4"]),
        ("folder", ["a"], ["folder/a.mp4"]),
        (
            "folder",
            ["rtsp://x/1", "rtsp:__x/1"],
            ["folder/rtsp___x_1.mp4", "folder/rtsp___x_1-2.mp4"],
        ),
        ("folder", ["../../etc"], ["folder/______etc.mp4"]),
    ],
)
def test_the_names_of_the_files(
    tmp_path: Path, output: str, sources: list[str], names: list[str]
) -> None:
    """One file, one for each of several sources, or a folder; never the same twice."""
    paths = paths_of(tmp_path / output, sources)
    assert [paths[name].relative_to(tmp_path).as_posix() for name in sources] == names
    assert all(path.parent.is_dir() for path in paths.values())


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    """The error says which one there is."""
    with pytest.raises(OutputError, match=r"out\.avi: a file must end in \.mp4"):
        VideoOutput(tmp_path / "out.avi", ["a"])


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """Before the first frame."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        VideoOutput(tmp_path / "file" / "out.mp4", ["a"])


def test_a_full_disk_is_said() -> None:
    """It ends the output with a plain error, not with one of FFmpeg."""
    with pytest.raises(OutputError, match="/dev/full: it cannot be written.*No space left"):
        write(Path("/dev/full"), [shown(n, n) for n in range(100)])


def test_without_x264_another_encoder_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and the file is readable."""
    codec = av.codec.Codec

    def other(name: str, mode: Literal["r", "w"]) -> av.codec.Codec:
        if name in ("libx264", "libopenh264"):
            raise UnknownCodecError(name)
        return codec(name, mode)

    monkeypatch.setattr(av.codec, "Codec", other)
    video.codec_name.cache_clear()
    with caplog.at_level(logging.WARNING):
        for name in ("a.mp4", "b.mp4"):
            write(tmp_path / name, [shown(100, n) for n in range(5)])
            assert len(read(tmp_path / name)[0]) == 5
    video.codec_name.cache_clear()
    assert [one.getMessage() for one in caplog.records] == [
        "PyAV has no encoder libx264: videos are written by mpeg4"
    ]
