"""The files of an export: regular ones in its folder, of the size and hash that are stated."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath

from gradcam_server.errors import StartupError


def read_file(folder: Path, name: str, max_bytes: int) -> bytes:
    """Reads a small file.

    Args:
        folder: The export.
        name: The file's path in it, with slashes.
        max_bytes: The most bytes that it may have.

    Raises:
        StartupError: It cannot be read, is no regular file of the folder, or is too large.
    """
    with _open(folder, name) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise StartupError(f"{folder / name} has more than {max_bytes:,} bytes: it is no export's")
    return data


def check_files(folder: Path, sha256: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Compares files with what is stated of them.

    Args:
        folder: The export.
        sha256: Of each file, by its path in the folder, in hexadecimal digits.
        sizes: In bytes, as far as they are stated.

    Raises:
        StartupError: A file is missing, no regular file of the folder, or another one.
    """
    for name, expected in sha256.items():
        with _open(folder, name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != sizes.get(name, size):
                difference = f"it has {size:,} bytes, not {sizes[name]:,}"
            elif hashlib.file_digest(file, "sha256").hexdigest() != expected:
                difference = "its SHA-256 differs"
            else:
                continue
        raise StartupError(
            f"{folder / name} is not the file that was exported ({difference}): copy the whole "
            "folder again, or export again"
        )


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _open(folder: Path, name: str) -> Iterator[BufferedReader]:
    """Opens a regular file of a folder; links may lead to others of the same folder."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.name or "\0" in name:
        raise StartupError(f"the export {folder} names {name!r}, which is no path in its folder")
    try:
        root = folder.resolve(strict=True)
        path = (root / name).resolve(strict=True)
        if not path.is_relative_to(root):
            raise StartupError(
                f"{folder / name} is a link out of the export: put the file itself there"
            )
        if not stat.S_ISREG(path.stat().st_mode):
            raise StartupError(f"{folder / name} is no regular file: copy the whole folder again")
        # Whatever takes its place meanwhile, a pipe is not waited for, nor a link followed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    # Of a loop of links Python 3.11 makes a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise StartupError(f"the export {folder} is not whole: {error}") from error
    with os.fdopen(descriptor, "rb") as file:
        yield file
