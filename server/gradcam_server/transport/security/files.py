"""Notices that files have changed."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

Version: TypeAlias = tuple[tuple[int, int, int] | None, ...]


def version(paths: Iterable[Path]) -> Version:
    """Returns a value that changes when a file is written or replaced; None for a missing file."""
    return tuple(_version(path) for path in paths)


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
