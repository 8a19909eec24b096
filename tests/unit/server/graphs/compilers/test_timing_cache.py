"""Measured times are found again, by the same versions alone."""

from pathlib import Path

import pytest

from gradcam_server.graphs.compilers import timing_cache
from gradcam_server.graphs.compilers.timing_cache import TimingCache


def test_keys_are_kept_beside_each_other(tmp_path: Path) -> None:
    """Another process finds the times of each key."""
    path = tmp_path / "folder" / "times.json"
    TimingCache(path).put("one", {"a": 1.0})
    TimingCache(path).put("two", {"b": 2.0})
    assert TimingCache(path).get("one") == {"a": 1.0}
    assert TimingCache(path).get("two") == {"b": 2.0}
    assert TimingCache(path).get("three") is None
    assert [one.name for one in path.parent.iterdir()] == ["times.json"]


def test_other_versions_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade the cache is empty."""
    cache = TimingCache(tmp_path / "times.json")
    cache.put("one", {"a": 1.0})
    monkeypatch.setattr(timing_cache, "installed_versions", lambda packages: {"keras": "99"})
    assert cache.get("one") is None


@pytest.mark.parametrize("content", ["", "[1]", "{", "\udcff", '{"x": 1}'])
def test_a_broken_file_is_no_error(tmp_path: Path, content: str) -> None:
    """The file is replaced."""
    path = tmp_path / "times.json"
    path.write_text(content, errors="surrogateescape")
    cache = TimingCache(path)
    assert cache.get("one") is None
    cache.put("one", {"a": 1.0})
    assert cache.get("one") == {"a": 1.0}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """The server of a read-only container starts."""
    (tmp_path / "file").write_text("")
    cache = TimingCache(tmp_path / "file" / "times.json")
    cache.put("one", {"a": 1.0})
    assert cache.get("one") is None
