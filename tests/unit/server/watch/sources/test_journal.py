"""What is done stays done."""

import os
import sqlite3
from pathlib import Path

import pytest

from gradcam_server.watch.sources.errors import SourceError
from gradcam_server.watch.sources.journal import FileState, Journal, default_journal

_STATE = FileState(10, 1_700_000_000_123_456_789)


def test_done_files_are_known_after_reopening(tmp_path: Path) -> None:
    """Name, size and time to the nanosecond are kept; any other state is another file."""
    journal = Journal(tmp_path / "new" / "j.sqlite")
    odd = os.fsdecode(b"\xff odd.jpg")
    journal.add("a.jpg", _STATE)
    journal.add(odd, _STATE)
    journal.sync()
    journal.close()
    journal = Journal(tmp_path / "new" / "j.sqlite")
    assert journal.has("a.jpg", _STATE)
    assert journal.has(odd, _STATE)
    assert not journal.has("a.jpg", _STATE._replace(mtime_ns=_STATE.mtime_ns + 1))
    assert not journal.has("a.jpg", _STATE._replace(size=11))
    assert not journal.has("b.jpg", _STATE)
    journal.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second watcher of the same journal is told so, and can begin when the first ends."""
    first = Journal(tmp_path / "j")
    with pytest.raises(SourceError, match="another gradcam watch uses the journal"):
        Journal(tmp_path / "j")
    first.close()
    Journal(tmp_path / "j").close()


def test_file_that_is_no_journal(tmp_path: Path) -> None:
    """A file of another kind is not overwritten, and the error says what to do."""
    (tmp_path / "j").write_bytes(b"my notes " * 1000)
    with pytest.raises(SourceError, match="remove it, or name another"):
        Journal(tmp_path / "j")
    assert (tmp_path / "j").read_bytes().startswith(b"my notes")
    with pytest.raises(SourceError, match="cannot be opened"):
        Journal(tmp_path / "j" / "below")


def test_old_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    """After 30 days a file that is gone is forgotten; one that is there, or newer, is kept."""
    journal = Journal(tmp_path / "j")
    for name in ("old-gone", "old-there"):
        journal.add(name, _STATE)
    journal.close()
    database = sqlite3.connect(tmp_path / "j")
    database.execute("UPDATE done SET done_at = done_at - 31 * 86400")
    database.commit()
    database.close()
    journal = Journal(tmp_path / "j")
    journal.add("new-gone", _STATE)
    journal.forget_old(lambda name: name == "old-there")
    assert [
        name for name in ("old-gone", "old-there", "new-gone") if journal.has(name, _STATE)
    ] == [
        "old-there",
        "new-gone",
    ]
    journal.close()


def test_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder has a journal of its own, by whatever path it is named."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    place = default_journal(tmp_path / "a")
    assert place.parent == tmp_path / "state" / "gradcam" / "watch"
    assert default_journal(tmp_path / "link") == place
    assert default_journal(tmp_path) != place
