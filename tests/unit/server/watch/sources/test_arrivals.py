"""Which files of a folder are complete, and how many names are held."""

import os
from pathlib import Path

import pytest

from gradcam_server.watch.sources import arrivals as arrivals_module
from gradcam_server.watch.sources.arrivals import Arrivals, is_temporary
from gradcam_server.watch.sources.writers import has_writer


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    """A clock that stands until it is set."""
    return _Clock()


def _all(arrivals: Arrivals) -> list[str]:
    names = []
    while (name := arrivals.next_name(0)) is not None:
        names.append(name)
    return names


@pytest.fixture
def unknown_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without leases: nobody knows who writes."""
    monkeypatch.setattr(arrivals_module, "has_writer", lambda path: None)


@pytest.mark.parametrize(
    "name", [".a.jpg", "a.jpg.part", "a.PART", "a.tmp", "a.jpg~", ".a.jpg.x1Y2z3", "a.crdownload"]
)
def test_temporary_names(name: str, tmp_path: Path, clock: _Clock) -> None:
    """Hidden and unfinished names come neither by event nor by scan."""
    assert is_temporary(name)
    (tmp_path / name).write_bytes(b"x")
    arrivals = Arrivals(tmp_path, lambda *_: True, clock=clock)
    arrivals.completed(name)
    assert _all(arrivals) == []


def test_files_at_the_start_are_sorted(tmp_path: Path, clock: _Clock) -> None:
    """What is there comes in the order of names; subfolders do not."""
    for name in ("c.png", "a.jpg", "b"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "d.jpg").mkdir()
    assert _all(Arrivals(tmp_path, lambda *_: True, clock=clock)) == ["a.jpg", "b", "c.png"]


def test_open_file_is_not_complete(tmp_path: Path, clock: _Clock) -> None:
    """A file that a process still writes does not come, however old; it does when closed."""
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.write(b"x")
        file.flush()
        os.utime(path, (0, 0))
        if has_writer(path) is None:
            pytest.skip("this file system has no leases")
        arrivals = Arrivals(tmp_path, lambda *_: True, clock=clock)
        assert _all(arrivals) == []
        clock.now += 100
        assert _all(arrivals) == []
    clock.now += 100
    assert _all(arrivals) == ["a.jpg"]


def test_a_lease_does_not_hinder_writers(tmp_path: Path) -> None:
    """Asking who writes changes nothing: a file can be opened afterwards, and none is left open."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    before = set(Path("/proc/self/fd").iterdir())
    assert has_writer(path) in (False, None)
    assert set(Path("/proc/self/fd").iterdir()) == before
    path.write_bytes(b"y")


@pytest.mark.usefixtures("unknown_writers")
def test_unchanged_for_two_seconds_is_complete(tmp_path: Path, clock: _Clock) -> None:
    """Where writers are unknown, a file comes when it has not changed for two seconds."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    arrivals = Arrivals(tmp_path, lambda *_: True, clock=clock)
    assert _all(arrivals) == []
    clock.now += 1.5
    path.write_bytes(b"xy")
    assert _all(arrivals) == []
    clock.now += 1.5
    assert _all(arrivals) == []
    clock.now += 1.5
    assert _all(arrivals) == ["a.jpg"]


@pytest.mark.usefixtures("unknown_writers")
def test_file_that_inotify_saw_opened_waits_for_its_close(tmp_path: Path, clock: _Clock) -> None:
    """A slow writer that pauses is not taken for one that is done; a lost event costs a minute."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    arrivals = Arrivals(tmp_path, lambda *_: True, clock=clock)
    arrivals.written("a.jpg")
    for _ in range(10):
        clock.now += 5
        assert _all(arrivals) == []
    arrivals.completed("a.jpg")
    assert _all(arrivals) == ["a.jpg"]

    arrivals.written("a.jpg")
    clock.now += 61
    assert _all(arrivals) == []
    clock.now += 3
    assert _all(arrivals) == ["a.jpg"]


def test_names_in_memory_are_limited(tmp_path: Path, clock: _Clock) -> None:
    """A flood beyond the limit stays in the folder, and comes by later scans, each file once."""
    read: set[str] = set()
    arrivals = Arrivals(tmp_path, lambda name, _: name not in read, max_names=10, clock=clock)
    names = [f"{number:03}.jpg" for number in range(95)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        arrivals.completed(name)
    came = []
    for _ in range(20):
        batch = _all(arrivals)
        assert len(batch) <= 10
        came += batch
        read.update(batch)
        clock.now += 10
    assert came == names


def test_removed_file_does_not_come(tmp_path: Path, clock: _Clock) -> None:
    """A file that was deleted or renamed away before its turn is forgotten."""
    arrivals = Arrivals(tmp_path, lambda *_: True, clock=clock)
    assert _all(arrivals) == []
    arrivals.completed("a.jpg")
    arrivals.removed("a.jpg")
    assert _all(arrivals) == []


def test_folder_that_is_gone_is_empty(tmp_path: Path, clock: _Clock) -> None:
    """A scan of a folder that was deleted finds nothing, without an error."""
    assert _all(Arrivals(tmp_path / "gone", lambda *_: True, clock=clock)) == []
