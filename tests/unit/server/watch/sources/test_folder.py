"""Folders that fill: complete files, each once, over restarts and outages."""

import logging
import os
import shutil
import time
from pathlib import Path

import cv2
import pytest

from gradcam_server.watch.sources import arrivals as arrivals_module
from gradcam_server.watch.sources.errors import SourceError
from gradcam_server.watch.sources.events import Event, SourceEvent
from gradcam_server.watch.sources.folder import FolderSource
from gradcam_server.watch.sources.naming import parse_sources
from support.reading import reading
from support.videos import number_of, numbered


def _jpeg(number: int) -> bytes:
    return cv2.imencode(".png", numbered(number)[..., ::-1])[1].tobytes()


@pytest.fixture(autouse=True)
def quick_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans every 0.2 seconds."""
    monkeypatch.setattr(arrivals_module, "_SCAN_S", 0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder."""
    path = tmp_path / "in"
    path.mkdir()
    return path


def _source(
    folder: Path, events: list[SourceEvent] | None = None, *, uses_inotify: bool = True
) -> FolderSource:
    (spec,) = parse_sources([f"box={folder}"])
    report = (events if events is not None else []).append
    return FolderSource(spec, report, folder.parent / "journal", uses_inotify=uses_inotify)


@pytest.mark.parametrize("uses_inotify", [True, False])
def test_files_come_when_they_are_complete(folder: Path, uses_inotify: bool) -> None:
    """Files from before the start, written, renamed and linked into the folder come, each once."""
    for number in (2, 0, 1):
        (folder / f"{number}.jpg").write_bytes(_jpeg(number))
    with reading(_source(folder, uses_inotify=uses_inotify)) as read:
        read.wait_for(3)
        (folder / "3.jpg").write_bytes(_jpeg(3))
        read.wait_for(4)
        outside = folder.parent / "x.jpg"
        outside.write_bytes(_jpeg(4))
        outside.rename(folder / "4.jpg")
        read.wait_for(5)
        (folder / ".5.part").write_bytes(_jpeg(5))
        (folder / ".5.part").rename(folder / "5.jpg")
        read.wait_for(6)
        outside.write_bytes(_jpeg(6))
        (folder / "6.jpg").hardlink_to(outside)
        read.wait_for(7)
        time.sleep(0.5)  # another scan
    assert read.names() == [f"{number}.jpg" for number in range(7)]
    assert [number_of(frame.image) for frame in read.frames] == list(range(7))
    assert [frame.number for frame in read.frames] == list(range(7))
    assert read.frames[3].encoded == _jpeg(3)
    assert not read.frames[3].is_live
    assert abs(read.frames[3].time_s - time.time()) < 60


@pytest.mark.parametrize("uses_inotify", [True, False])
def test_slow_writer_comes_once_and_whole(folder: Path, uses_inotify: bool) -> None:
    """A file that is written in parts, with pauses, comes when it is closed."""
    data = _jpeg(9)
    events: list[SourceEvent] = []
    with reading(_source(folder, events, uses_inotify=uses_inotify)) as read:
        with (folder / "slow.jpg").open("wb") as file:
            for part in (data[:20], data[20:40], data[40:]):
                file.write(part)
                file.flush()
                time.sleep(0.4)
            assert not read.frames
        read.wait_for(1)
        time.sleep(0.2)
    assert [frame.encoded for frame in read.frames] == [data]
    assert not events


def test_inotify_is_prompt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file comes without a scan, as soon as it is closed or renamed."""
    monkeypatch.setattr(arrivals_module, "_SCAN_S", 1000.0)
    with reading(_source(folder)) as read:
        (folder / "0.jpg").write_bytes(_jpeg(0))
        read.wait_for(1)
        (folder / "1.jpg.part").write_bytes(_jpeg(1))
        (folder / "1.jpg.part").rename(folder / "1.jpg")
        read.wait_for(2)
        (folder.parent / "2.jpg").write_bytes(_jpeg(2))
        (folder.parent / "2.jpg").rename(folder / "2.jpg")
        read.wait_for(3)


def test_nothing_comes_twice_after_a_restart(folder: Path) -> None:
    """What was done does not come again; what came but was not done does."""
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(_jpeg(number))
    source = _source(folder)
    with reading(source, marks_done=False) as read:
        read.wait_for(4)
        for frame in read.frames[:2]:
            source.done(frame)
    for frame in read.frames[2:3]:
        source.done(frame)  # its result came after the end
    _kill(source)
    (folder / "4.jpg").write_bytes(_jpeg(4))
    with reading(_source(folder)) as read:
        read.wait_for(2)
        time.sleep(0.5)
    assert read.names() == ["3.jpg", "4.jpg"]


def test_changed_file_comes_again(folder: Path) -> None:
    """The same name with other content is another file, also while the first is in work."""
    source = _source(folder)
    path = folder / "last.jpg"
    path.write_bytes(_jpeg(1))
    with reading(source, marks_done=False) as read:
        read.wait_for(1)
        path.write_bytes(_jpeg(2))
        read.wait_for(2)
        source.done(read.frames[0])
    _kill(source)
    with reading(_source(folder)) as read:
        read.wait_for(1)
        time.sleep(0.2)
    assert [number_of(frame.image) for frame in read.frames] == [2]


def test_files_that_are_no_images_fail_once(folder: Path) -> None:
    """The content decides, not the name; what is no image is reported, once over restarts."""
    (folder / "picture.txt").write_bytes(_jpeg(1))
    (folder / "a.jpg").write_bytes(b"no image " * 20)
    (folder / "b.jpg").write_bytes(_jpeg(2)[:-40])
    (folder / "empty.jpg").touch()
    os.mkfifo(folder / "pipe.jpg")
    events: list[SourceEvent] = []
    with reading(_source(folder, events)) as read:
        read.wait(lambda: len(events) == 2 and len(read.frames) == 1)
    assert read.names() == ["picture.txt"]
    assert [event.path and event.path.name for event in events] == ["a.jpg", "b.jpg"]
    assert all(event.event is Event.FAILED for event in events)
    assert "truncated" in events[1].detail
    with reading(_source(folder, events)) as read:
        (folder / "empty.jpg").write_bytes(_jpeg(3))
        read.wait_for(1)
    assert read.names() == ["empty.jpg"]
    assert len(events) == 2


@pytest.mark.parametrize("uses_inotify", [True, False])
def test_folder_that_is_made_again(
    folder: Path, uses_inotify: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is deleted is waited for; files in the new one come."""
    caplog.set_level(logging.INFO)
    events: list[SourceEvent] = []
    with reading(_source(folder, events, uses_inotify=uses_inotify)) as read:
        (folder / "0.jpg").write_bytes(_jpeg(0))
        read.wait_for(1)
        shutil.rmtree(folder)
        read.wait(lambda: "is gone" in caplog.text)
        folder.mkdir()
        (folder / "1.jpg").write_bytes(_jpeg(1))
        read.wait_for(2)
        (folder / "2.jpg").write_bytes(_jpeg(2))
        read.wait_for(3)
    assert read.names() == ["0.jpg", "1.jpg", "2.jpg"]
    assert [event.event for event in events] == [Event.REOPENED]
    assert caplog.text.count("is gone") == 1


@pytest.mark.parametrize("way", ["renamed", "deleted"])
def test_folder_replaced_between_two_looks(
    folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new folder of the same name, even of the same inode, is noticed without a scan's turn."""
    monkeypatch.setattr(arrivals_module, "_SCAN_S", 1000.0)
    with reading(_source(folder)) as read:
        (folder / "0.jpg").write_bytes(_jpeg(0))
        read.wait_for(1)
        if way == "renamed":
            folder.rename(folder.parent / "old")
        else:
            shutil.rmtree(folder)
        folder.mkdir()
        (folder / "1.jpg").write_bytes(_jpeg(1))
        read.wait_for(2)
        time.sleep(0.1)
        (folder / "2.jpg").write_bytes(_jpeg(2))
        read.wait_for(3)
    assert read.names() == ["0.jpg", "1.jpg", "2.jpg"]


def test_many_files_come_each_once(folder: Path) -> None:
    """A flood of files beside the reader loses and repeats none."""
    with reading(_source(folder)) as read:
        for number in range(300):
            path = folder / f"{number:03}.jpg"
            path.with_suffix(".tmp").write_bytes(_jpeg(number % 256))
            path.with_suffix(".tmp").rename(path)
        read.wait_for(300)
        time.sleep(0.2)
    assert sorted(read.names()) == [f"{number:03}.jpg" for number in range(300)]


def test_two_watchers_of_one_folder(folder: Path) -> None:
    """The second is refused while the first runs, with the same journal."""
    source = _source(folder)
    with pytest.raises(SourceError, match="another gradcam watch"):
        _source(folder)
    source.close()
    _source(folder).close()


def _kill(source: FolderSource) -> None:
    """Lets go of the journal as the end of the process does, which writes nothing more."""
    source._journal.close()
