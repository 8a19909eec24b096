"""The files of an export are compared with the manifest."""

import hashlib
import os
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from gradcam_server.errors import StartupError
from gradcam_server.exports import files
from gradcam_server.exports.files import FileChecks

NAMES = ("first", "second", "third")


@pytest.fixture
def hashes(tmp_path: Path) -> dict[str, str]:
    """Three files in ``tmp_path``; the first takes the longest to hash."""
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(bytes([number]) * (1 << 22 >> 8 * number))
    return {name: files.hash_file(tmp_path / name) for name in NAMES}


def sizes_of(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in NAMES}


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (("first", "second"), "first.*SHA-256 differs"),
        (("first", "missing"), "missing"),
        (("second", "third"), "second.*SHA-256 differs"),
        (("third",), "third.*SHA-256 differs"),
    ],
)
def test_the_error_is_of_the_first_broken_file(
    tmp_path: Path, hashes: dict[str, str], broken: tuple[str, ...], text: str
) -> None:
    """It does not depend on which file is hashed first; a missing file is found before that."""
    sizes = sizes_of(tmp_path)
    for name in broken:
        hashes[name] = hashlib.sha256().hexdigest()
    with pytest.raises(StartupError, match=text):
        FileChecks(tmp_path, hashes, sizes).wait()


@pytest.mark.parametrize("count", [2, 3])
def test_files_are_hashed_side_by_side(
    tmp_path: Path, hashes: dict[str, str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many at a time as there are cores: a start waits for the largest, not for the sum."""
    together, digest = Barrier(count, timeout=10), hashlib.file_digest

    def wait(*arguments: Any) -> Any:
        together.wait()
        return digest(*arguments)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(count))
    monkeypatch.setattr(hashlib, "file_digest", wait)
    FileChecks(tmp_path, dict(list(hashes.items())[:count]), {}).wait()
