"""The output folder: shards appear whole or not at all, and each has one writer.

A shard is written under a temporary name in the same folder, synced and renamed. So a file with a
shard's name is finished, even after kill -9 or a power cut. A writer locks its parts (POSIX byte
ranges of one file, a byte for each part; the locks end with the process), so two jobs never write
the same part.
"""

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from gradcam_server.batch.errors import OutputError
from gradcam_server.batch.plan import Part
from gradcam_server.batch.schema import ERROR, SCHEMA, Row, to_batch

# Readers of Parquet folders ignore names that begin with "_" or ".".
OVERLAYS = "_overlays"
_LOCK = ".lock"
_TEMPORARY = ".tmp"
_JOB, _ERRORS = b"gradcam.job", b"gradcam.errors"
_GROUP_ROWS = 1000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MANIFEST_BYTE = 1 << 40
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_BROKEN = (errno.EIO, errno.ESTALE)


class Folder:
    """An output folder.

    Args:
        path: Its path; it is created if it does not exist.

    Raises:
        OutputError: It cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Releases all locks."""
        os.close(self._lock)

    def lock_parts(self, start: int, stop: int) -> None:
        """Locks the parts from ``start`` up to ``stop``, until ``close``.

        Raises:
            OutputError: Another process is writing some of them.
        """
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, stop - start, start)
        except BlockingIOError:
            raise _in_use(self.path) from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _in_use(self.path) from None
            raise OutputError(f"{self.path}: it cannot be locked ({error.strerror})") from error

    @contextmanager
    def if_unused(self) -> Iterator[bool]:
        """Gives whether no part was ever begun; if so, no process can begin one meanwhile."""
        if self.has_shards():
            yield False
            return
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, _MANIFEST_BYTE, 0)
        except OSError:
            yield False
            return
        try:
            yield not self.has_shards()
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, _MANIFEST_BYTE, 0)

    @contextmanager
    def manifest_lock(self) -> Iterator[None]:
        """Waits until no other process changes the manifest."""
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, _MANIFEST_BYTE)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, _MANIFEST_BYTE)

    def shard(self, part: Part) -> Path:
        """The file of a part's shard."""
        return self.path / f"{part.name}.parquet"

    def errors_of(self, part: Part, job: str) -> int | None:
        """Returns the number of error rows in a part's shard; None if it is not finished.

        Raises:
            OutputError: A file of that name is broken, or another job wrote it.
        """
        path = self.shard(part)
        try:
            metadata = pq.read_metadata(path)
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException) as error:
            raise OutputError(
                f"{path}: it cannot be read as a Parquet file ({error}); remove it, and the same "
                "command writes it again"
            ) from error
        notes = metadata.metadata or {}
        if notes.get(_JOB) != job.encode() or metadata.num_rows != len(part):
            raise OutputError(
                f"{path}: another job wrote it; remove it, or name another output folder"
            )
        return int(notes[_ERRORS])

    def has_shards(self) -> bool:
        """Returns whether the folder holds any Parquet files, of this job or not."""
        return next(self.path.glob("*.parquet"), None) is not None

    def remove_leftovers(self, parts: Sequence[Part]) -> None:
        """Removes temporary files of killed writers for these parts, which must be locked."""
        for part in parts:
            with writing(self.path), suppress(FileNotFoundError):
                self._temporary(part).unlink()

    def _temporary(self, part: Part) -> Path:
        return self.path / f".{part.name}{_TEMPORARY}"

    @contextmanager
    def writer(self, part: Part, job: str) -> Iterator["ShardWriter"]:
        """Opens a shard for writing. It appears when the context ends without an error.

        Args:
            part: The part, which must be locked.
            job: The job's fingerprint, stored in the shard.

        Raises:
            OutputError: The disk is full, or the folder cannot be written.
        """
        with writing(self.path), RowFile(self._temporary(part), self.shard(part)) as rows:
            shard = ShardWriter(self.path, rows, part, job)
            yield shard
            shard.finish()


class RowFile:
    """A Parquet file of rows, which appears whole when it is finished, or not at all.

    Args:
        temporary: A file in the same folder, which has the rows until then.
        path: The file.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """

    def __init__(self, temporary: Path, path: Path) -> None:
        self._temporary, self._path = temporary, path
        self._rows: list[Row] = []
        self._is_finished = False
        self._file = temporary.open("wb")
        self._writer = pq.ParquetWriter(self._file, SCHEMA, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, row: Row) -> None:
        """Adds a row."""
        self._rows.append(row)
        if len(self._rows) == _GROUP_ROWS:
            self._flush()

    def finish(self, notes: Mapping[bytes, str]) -> None:
        """Writes the remaining rows, syncs the file to the disk and gives it its name.

        Args:
            notes: Stored in the file's metadata.
        """
        self._flush()
        self._writer.add_key_value_metadata(notes)
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)
        self._is_finished = True
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Removes the file, unless it is finished."""
        if self._is_finished:
            return
        if not self._file.closed:
            with suppress(OSError, pa.ArrowException, ValueError):
                self._writer.close()
            self._writer.is_open = False  # it would try again when it is collected
            with suppress(OSError):
                self._file.close()
        with suppress(OSError):
            self._temporary.unlink()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(to_batch(self._rows))
            self._rows.clear()


class ShardWriter:
    """Writes the rows of one part. Made by ``Folder.writer``."""

    def __init__(self, folder: Path, rows: RowFile, part: Part, job: str) -> None:
        self._folder, self._part, self._job = folder, part, job
        self._rows = rows
        self._count = self._errors = 0
        self._overlays: Path | None = None

    def add(self, row: Row) -> None:
        """Adds the next row.

        Raises:
            ValueError: Its index is not the next of the part.
        """
        if row.index != self._part.start + self._count or self._count == len(self._part):
            raise ValueError(f"row {row.index} is not the next one of {self._part}")
        self._count += 1
        self._errors += row.status == ERROR
        if row.overlay_jpeg is not None:
            row.overlay = self._write_overlay(row.index, row.overlay_jpeg)
            row.overlay_jpeg = None
        self._rows.add(row)

    def finish(self) -> None:
        """Writes the remaining rows, syncs the file to the disk and gives it its name.

        Raises:
            ValueError: Rows are missing.
        """
        if self._count != len(self._part):
            raise ValueError(f"{self._part} has {self._count} rows")
        self._rows.finish({_JOB: self._job, _ERRORS: str(self._errors)})

    def _write_overlay(self, index: int, jpeg: bytes) -> str:
        # Overlays have fixed names and precede their shard: a second run overwrites them.
        if self._overlays is None:
            self._overlays = self._folder / OVERLAYS / self._part.name
            self._overlays.mkdir(parents=True, exist_ok=True)
        path = self._overlays / f"{index:09d}.jpg"
        path.write_bytes(jpeg)
        return path.relative_to(self._folder).as_posix()


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file's content: a reader sees the old content or the new.

    Raises:
        OutputError: The disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}{_TEMPORARY}")
    with writing(path.parent):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def sync_folder(path: Path) -> None:
    """Makes renames in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns errors of writing into errors that say what to do.

    Raises:
        OutputError: The disk is full or fails, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        number: Any = error.errno
        if number in _FULL:
            raise OutputError(
                f"{folder}: no room to write ({os.strerror(number)}). Finished shards stay, and no "
                "shard is half written: make room, and the same command goes on"
            ) from error
        if number in _READ_ONLY or isinstance(error, FileExistsError | NotADirectoryError):
            raise OutputError(
                f"{folder}: it cannot be written ({os.strerror(number)}); OUTPUT must be a folder "
                "that you may write, or the name of a new one"
            ) from error
        if number in _BROKEN:
            raise OutputError(
                f"{folder}: it cannot be written ({os.strerror(number)}): the disk or its "
                "connection failed. Finished shards stay, and no shard is half written: once it "
                "works, the same command goes on"
            ) from error
        raise


def _in_use(folder: Path) -> OutputError:
    return OutputError(
        f"{folder}: another job is writing these parts now; wait for it, or give each of several "
        "processes a share of its own (--shard 0/2, --shard 1/2)"
    )
