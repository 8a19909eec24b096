"""Video files: order, times, orientation, broken frames."""

from pathlib import Path

import av
import numpy as np
import pytest

from gradcam_server.watch.sources.errors import SourceError
from gradcam_server.watch.sources.events import Event, SourceEvent
from gradcam_server.watch.sources.naming import parse_sources
from gradcam_server.watch.sources.video import VideoFile
from support.videos import number_of, write_sound, write_video

_EVEN = [number / 10 for number in range(20)]


def _video(
    path: Path, fps: float | None = None, events: list[SourceEvent] | None = None
) -> VideoFile:
    (spec,) = parse_sources([str(path)])
    return VideoFile(spec, fps, (events if events is not None else []).append)


def test_all_frames_come_in_order_with_their_times(tmp_path: Path) -> None:
    """Every frame of a file comes once, numbered, in the order of presentation."""
    path = write_video(tmp_path / "clip.mp4", _EVEN, options={"bf": "3"})
    frames = list(_video(path).frames())
    assert [frame.number for frame in frames] == list(range(20))
    assert [number_of(frame.image) for frame in frames] == list(range(20))
    assert [frame.time_s for frame in frames] == pytest.approx(_EVEN, abs=0.002)
    assert not frames[0].is_live


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_variable_frame_rates_keep_their_times(tmp_path: Path, suffix: str) -> None:
    """Gaps between frames stay as the file has them."""
    times = [0, 0.033, 0.5, 0.51, 2.25]
    path = write_video(tmp_path / f"clip{suffix}", times)
    assert [frame.time_s for frame in _video(path).frames()] == pytest.approx(times, abs=0.003)


def test_times_begin_with_the_file(tmp_path: Path) -> None:
    """A transport stream, whose clock starts late, begins at 0 all the same."""
    path = write_video(tmp_path / "clip.ts", _EVEN)
    frames = list(_video(path).frames())
    assert len(frames) == 20
    assert frames[0].time_s == pytest.approx(0, abs=0.15)
    assert frames[-1].time_s - frames[0].time_s == pytest.approx(1.9, abs=0.01)


def test_fps_keeps_frames_nearest_to_the_grid(tmp_path: Path) -> None:
    """With 2 frames per second of ten, every fifth frame is read, with its own number."""
    path = write_video(tmp_path / "clip.mp4", _EVEN)
    assert [frame.number for frame in _video(path, fps=2).frames()] == [0, 5, 10, 15]


@pytest.mark.parametrize(("rotation", "shape"), [(90, (64, 48)), (180, (48, 64)), (270, (64, 48))])
def test_rotated_videos_are_upright(tmp_path: Path, rotation: int, shape: tuple[int, int]) -> None:
    """A phone's display matrix turns the pixels: the corner goes where a player shows it."""
    path = write_video(tmp_path / "clip.mp4", [0.0], rotation=rotation)
    (frame,) = _video(path).frames()
    assert frame.image.shape[:2] == shape
    assert frame.image.flags.c_contiguous
    # The matrix turns counterclockwise, as np.rot90 does.
    red = np.zeros((48, 64), bool)
    red[:24, :32] = True
    expected = np.rot90(red, rotation // 90)
    found = (frame.image[..., 0] > 150) & (frame.image[..., 1] < 100)
    assert (found == expected).mean() > 0.95


def test_colours_are_those_of_the_video(tmp_path: Path) -> None:
    """Red stays red: channels are RGB."""
    (frame,) = _video(write_video(tmp_path / "clip.mp4", [0.0])).frames()
    assert frame.image[5, 5] == pytest.approx((230, 20, 20), abs=12)
    assert frame.image.dtype == np.uint8


def test_broken_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    """Garbage in the middle of a file costs its own frames, and is reported."""
    path = write_video(tmp_path / "clip.mkv", _EVEN, options={"g": "1"})
    with av.open(str(path)) as container:
        packet = next(packet for packet in container.demux() if packet.pts and packet.pts >= 900)
        content, place = bytes(packet), packet.pos
    data = bytearray(path.read_bytes())
    begin = data.index(content, max(place or 0, 0))
    data[begin : begin + len(content)] = bytes(len(content))
    path.write_bytes(data)
    events: list[SourceEvent] = []
    read = [number_of(frame.image) for frame in _video(path, events=events).frames()]
    assert read == [number for number in range(20) if number != 9]
    assert [event.event for event in events] == [Event.FAILED]


def test_truncated_file_gives_what_it_has(tmp_path: Path) -> None:
    """A file that was cut off ends early, without an error."""
    path = write_video(tmp_path / "clip.mkv", _EVEN, options={"g": "1"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = [number_of(frame.image) for frame in _video(path).frames()]
    assert 3 <= len(read) < 20
    assert read == list(range(len(read)))


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_file_that_is_no_video_is_an_error(tmp_path: Path, content: bytes) -> None:
    """The error names the file and says that it is no video."""
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"notes\.mp4 cannot be read as a video"):
        list(_video(path).frames())


def test_sound_beside_the_video_is_left_out(tmp_path: Path) -> None:
    """A file with sound gives the frames of its video."""
    path = write_video(tmp_path / "clip.mkv", _EVEN, has_sound=True)
    with av.open(str(path)) as container:
        assert {stream.type for stream in container.streams} == {"audio", "video"}
    assert len(list(_video(path).frames())) == 20


def test_sound_alone_is_an_error(tmp_path: Path) -> None:
    """A file with sound only has no frames, and says so."""
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        write_sound(container, container.add_stream("pcm_s16le", rate=8000, layout="mono"))
    with pytest.raises(SourceError, match="has no video"):
        list(_video(path).frames())


@pytest.mark.parametrize("name", ["a:b.mp4", "concat:x.mp4", "10%.mp4"])
def test_names_are_not_taken_for_protocols(tmp_path: Path, name: str) -> None:
    """FFmpeg's own syntax in a file's name is just a name."""
    path = write_video(tmp_path / "clip.mp4", [0.0]).rename(tmp_path / name)
    assert len(list(_video(path).frames())) == 1


def test_close_ends_the_file(tmp_path: Path) -> None:
    """After close() no further frame comes."""
    source = _video(write_video(tmp_path / "clip.mp4", _EVEN))
    frames = source.frames()
    next(frames)
    source.close()
    assert list(frames) == []
