"""What was measured is found again, and only where it holds."""

from pathlib import Path

import pytest

from gradcam_server.graphs.compilers import timing_cache as memory
from gradcam_server.graphs.compilers.timing_cache import Memory


def test_answers_are_kept_beside_each_other(tmp_path: Path) -> None:
    """Another process finds what was remembered of each question."""
    path = tmp_path / "folder" / "times.json"
    Memory(path).remember("one", {"a": 1.0})
    Memory(path).remember("two", {"b": 2.0})
    assert Memory(path).recall("one") == {"a": 1.0}
    assert Memory(path).recall("two") == {"b": 2.0}
    assert Memory(path).recall("three") is None
    assert [one.name for one in path.parent.iterdir()] == ["times.json"]


def test_other_versions_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade nothing is known."""
    kept = Memory(tmp_path / "times.json")
    kept.remember("one", {"a": 1.0})
    monkeypatch.setattr(memory, "_version", lambda package: "99")
    assert kept.recall("one") is None


@pytest.mark.parametrize("content", ["", "[1]", "{", "\udcff", '{"x": 1}'])
def test_a_broken_file_is_no_error(tmp_path: Path, content: str) -> None:
    """It is written anew."""
    path = tmp_path / "times.json"
    path.write_text(content, errors="surrogateescape")
    kept = Memory(path)
    assert kept.recall("one") is None
    kept.remember("one", {"a": 1.0})
    assert kept.recall("one") == {"a": 1.0}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """The server of a read-only container starts."""
    (tmp_path / "file").write_text("")
    kept = Memory(tmp_path / "file" / "times.json")
    kept.remember("one", {"a": 1.0})
    assert kept.recall("one") is None
