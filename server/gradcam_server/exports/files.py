"""The files of an export: regular files in its folder, of the size and hash in the manifest."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath

from gradcam_server.errors import StartupError


def read_file(folder: Path, name: str, max_bytes: int) -> bytes:
    """Reads a small file.

    Args:
        folder: The export.
        name: The file's path in the folder, with slashes.
        max_bytes: The maximal size of the file.

    Raises:
        StartupError: The file cannot be read, is not a regular file of the folder, or is too large.
    """
    with _open(folder, name) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise StartupError(
            f"{folder / name} has more than {max_bytes:,} bytes: it is not of an export"
        )
    return data


class FileChecks:
    """Compares files with their sizes and hashes in the manifest.

    Sizes are compared at once; hashes in the background, several at a time, in the order given.

    Args:
        folder: The export.
        sha256: Hashes by path in the folder, in hexadecimal digits.
        sizes: Sizes by path in the folder, in bytes; older exports state none.

    Raises:
        StartupError: A file is missing, not a regular file of the folder, or has another size.
    """

    def __init__(self, folder: Path, sha256: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        for name in sha256:
            with _open(folder, name) as file:
                found = os.fstat(file.fileno()).st_size
            if found != (size := sizes.get(name, found)):
                raise _another_file(folder / name, f"it has {found:,} bytes, not {size:,}")
        # Hashing leaves Python's lock free.
        threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="hashing")
        self._checks = [
            threads.submit(_check_hash, folder, name, expected) for name, expected in sha256.items()
        ]
        threads.shutdown(wait=False)

    def wait(self) -> None:
        """Waits until all hashes are compared. The files must not be used before.

        Raises:
            StartupError: A file is not the one that was exported; the first such file is named.
        """
        for check in self._checks:
            check.result()


def _check_hash(folder: Path, name: str, sha256: str) -> None:
    with _open(folder, name) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise _another_file(folder / name, "its SHA-256 differs")


def _another_file(path: Path, difference: str) -> StartupError:
    return StartupError(
        f"{path} is not the file that was exported ({difference}): copy the whole folder again, "
        "or export again"
    )


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _open(folder: Path, name: str) -> Iterator[BufferedReader]:
    """Opens a regular file of a folder; links may lead to files of the same folder."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.name or "\0" in name:
        raise StartupError(f"the export {folder} names {name!r}, which is not a path in its folder")
    try:
        root = folder.resolve(strict=True)
        path = (root / name).resolve(strict=True)
        if not path.is_relative_to(root):
            raise StartupError(
                f"{folder / name} is a link out of the export: put the file itself there"
            )
        if not stat.S_ISREG(path.stat().st_mode):
            raise StartupError(
                f"{folder / name} is not a regular file: copy the whole folder again"
            )
        # Should a pipe or a link take its place meanwhile, it is neither waited for nor followed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    # Python 3.11 raises RuntimeError for a loop of links.
    except (OSError, RuntimeError) as error:
        raise StartupError(f"the export {folder} is not whole: {error}") from error
    with os.fdopen(descriptor, "rb") as file:
        yield file
