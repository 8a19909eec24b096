"""Where images come from: a list that is the same each time, and a way to read any part of it.

Nothing here decodes. A source keeps its list compactly, so that millions of images take megabytes,
and can be pickled: other processes read parts of it.
"""

import glob
import hashlib
import os
import stat
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from gradcam_server.batch.errors import InputError

SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")
_LIST_SUFFIXES = (".list", ".lst", ".txt")
_MAX_FILE_BYTES = 256 * 1024 * 1024
# Columns that are taken for the image if none is named, the first that is there.
_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "image_path", "file_path", "path", "file_name")
_READ_ROWS = 64


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        index: Its place in the list.
        id: Its name, for people: a path below the folder, or the shard's and the member's name.
        path: Where it is.
        load: Reads the image file's bytes; raises ``OSError`` or ``ValueError``.
    """

    index: int
    id: str
    path: str
    load: Callable[[], bytes]


class Source(Protocol):
    """A list of images in a fixed order. Can be pickled."""

    @property
    def kind(self) -> str:
        """What it is, for the manifest."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs if the list does: other images, more of them, or another order."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Yields the images of a range, in order; their bytes are read by ``Item.load``."""
        ...


def open_source(where: str, *, column: str | None = None, outside: Path | None = None) -> Source:
    """Lists the images of a folder, a glob, a list of paths, Parquet files or tar shards.

    Args:
        where: A folder, which is searched recursively; a pattern; a .txt file with a path on each
            line, relative to its own folder; a .parquet file; a .tar file; or an image.
        column: The column of Parquet files that holds images or paths; None finds it.
        outside: A folder whose files are no inputs: that of the output.

    Raises:
        InputError: There is nothing, or nothing that can be read like that.
    """
    path = Path(where)
    if path.is_dir():
        files = FileSource("folder", _walk(where, outside), root=where)
        source: Source = files
        if not len(files):
            raise InputError(f"{where}: no image in this folder or below it ({_hint(path)})")
    elif path.exists():
        source = _open_file(where, path, column)
    elif glob.has_magic(where):
        source = _open_files(where, sorted(glob.iglob(where, recursive=True)), column)  # noqa: PTH207
    else:
        raise InputError(f"{where}: there is no such folder or file")
    if not len(source):
        raise InputError(f"{where}: there are no images in it")
    return source


def _hint(folder: Path) -> str:
    for suffix in (".tar", ".parquet"):
        if any(folder.glob(f"*{suffix}")):
            return f"for {suffix} files give a pattern: '{folder}/*{suffix}'"
    return f"names must end in {', '.join(SUFFIXES)}"


def _open_file(where: str, path: Path, column: str | None) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetSource([where], column)
    if suffix == ".tar":
        return TarSource([where])
    if suffix in SUFFIXES:
        return FileSource("file", [where])
    if suffix in _LIST_SUFFIXES:
        try:
            return FileSource("list", _lines(path), root=str(path.parent))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: it cannot be read as a list of paths ({error})") from error
    raise InputError(
        f"{where}: it must be a folder, a pattern, an image, or a file that ends in .parquet, .tar "
        f"or {', '.join(_LIST_SUFFIXES)} (a path on each line)"
    )


def _open_files(where: str, paths: Sequence[str], column: str | None) -> Source:
    suffixes = {Path(path).suffix.lower() for path in paths}
    if not paths:
        raise InputError(f"{where}: nothing matches this pattern")
    if suffixes == {".tar"}:
        return TarSource(paths)
    if suffixes == {".parquet"}:
        return ParquetSource(paths, column)
    images = [path for path in paths if _is_image(path) and not Path(path).is_dir()]
    if not images:
        raise InputError(
            f"{where}: of {len(paths)} names that match none ends in {', '.join(SUFFIXES)}, and "
            "they are not all .tar or all .parquet"
        )
    return FileSource("glob", images)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _walk(root: str, outside: Path | None) -> Iterator[str]:
    """Yields the images of a folder, relative to it, in the order of their names."""
    skipped = None if outside is None else outside.resolve()
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(folder, name).resolve() != skipped
        )
        relative = os.path.relpath(folder, root)
        for name in sorted(files):
            if _is_image(name) and not name.startswith("."):
                yield name if relative == "." else f"{relative}/{name}"


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if name := line.rstrip("\r\n"):
                yield name


class Strings(Sequence[str]):
    """Many strings in one buffer, at 8 bytes each beside their characters.

    Args:
        strings: The strings; file names may hold bytes that are no UTF-8.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        text, ends = bytearray(), array("Q")
        for string in strings:
            text += os.fsencode(string)
            ends.append(len(text))
        self._text, self._ends = bytes(text), ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._text[self._ends[index - 1] if index else 0 : self._ends[index]])

    @property
    def fingerprint(self) -> str:
        """A hash of all."""
        return _fingerprint(self._text, self._ends.tobytes())


def _fingerprint(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def shown(name: str) -> str:
    """Returns a file's name as text that can be stored: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class FileSource:
    """Files by their paths.

    Args:
        kind: What the list came from.
        paths: The paths, relative to ``root``.
        root: Where relative ones begin; empty is here.
    """

    def __init__(self, kind: str, paths: Iterable[str], root: str = "") -> None:
        self.kind = kind
        self._paths, self._root = Strings(paths), root

    @property
    def fingerprint(self) -> str:
        """Of the names alone: what is in the files is not read twice."""
        return self._paths.fingerprint

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Yields the files of a range."""
        for index in range(start, stop):
            name = self._paths[index]
            path = os.path.join(self._root, name)  # noqa: PTH118 - Path would take "./" away
            yield Item(index, shown(name), shown(path), _Load(path))


@dataclass(frozen=True, slots=True)
class _Load:
    """Reads a file, or a part of one."""

    path: str
    offset: int = 0
    size: int | None = None

    def __call__(self) -> bytes:
        # What is no regular file (a pipe, say) must not be waited for.
        file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            size = status.st_size if self.size is None else self.size
            if size > _MAX_FILE_BYTES:
                raise ValueError(f"its {size:,} bytes are more than {_MAX_FILE_BYTES:,}")
            with os.fdopen(file, "rb", buffering=0, closefd=False) as opened:
                opened.seek(self.offset)
                data = bytearray()
                while len(data) < size and (more := opened.read(size - len(data))):
                    data += more
        finally:
            os.close(file)
        if self.size is not None and len(data) < size:
            raise ValueError("the shard ends before it does")
        return bytes(data)


class TarSource:
    """WebDataset's shards: the images among the members of tar files, which are not compressed.

    Args:
        paths: The files, in order.

    Raises:
        InputError: One is no such file.
    """

    kind = "tar"

    def __init__(self, paths: Sequence[str]) -> None:
        self._files = Strings(paths)
        self._offsets, self._sizes = array("Q"), array("Q")
        counts: list[int] = []
        self._names = Strings(self._index(paths, counts))
        self._starts = [0, *accumulate(counts)]

    def _index(self, paths: Sequence[str], counts: list[int]) -> Iterator[str]:
        for path in paths:
            counts.append(0)
            try:
                with tarfile.open(path, "r:") as shard:
                    while (member := shard.next()) is not None:
                        shard.members.clear()  # type: ignore[attr-defined]  # it would keep all
                        if member.isreg() and _is_image(member.name):
                            self._offsets.append(member.offset_data)
                            self._sizes.append(member.size)
                            counts[-1] += 1
                            yield member.name.removeprefix("./")
            except (tarfile.TarError, OSError, EOFError) as error:
                raise InputError(
                    f"{path}: it cannot be read as a tar file without compression ({error})"
                ) from error

    @property
    def fingerprint(self) -> str:
        """Of the members' names and places."""
        parts = self._offsets.tobytes(), self._sizes.tobytes(), repr(self._starts).encode()
        return _fingerprint(self._names.fingerprint.encode(), *parts)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Yields the members of a range."""
        for index in range(start, stop):
            path = self._files[bisect_right(self._starts, index) - 1]
            name = f"{Path(path).name}/{self._names[index]}"
            where = f"{path}/{self._names[index]}"
            load = _Load(path, self._offsets[index], self._sizes[index])
            yield Item(index, shown(name), shown(where), load)


class ParquetSource:
    """The rows of Parquet files: images as bytes or {bytes, path}, or paths.

    A column ``id`` gives the ids; else the file's name and the row's number do.

    Args:
        paths: The files, in order.
        column: The column; None is the first that looks like it.

    Raises:
        InputError: A file cannot be read, or has no such column.
    """

    kind = "parquet"

    def __init__(self, paths: Sequence[str], column: str | None = None) -> None:
        self._files = Strings(paths)
        self._groups: list[tuple[int, int, int]] = []  # (file, row group, its first row in it)
        starts, sizes = [0], []
        for number, path in enumerate(paths):
            with _open_parquet(path) as file:
                if number == 0:
                    self._column = _find_column(path, file.schema_arrow, column)
                    self._has_id = "id" in file.schema_arrow.names and self._column != "id"
                elif self._column not in file.schema_arrow.names:
                    raise InputError(f"{path}: it has no column {self._column!r}")
                metadata, row = file.metadata, 0
                for group in range(metadata.num_row_groups):
                    self._groups.append((number, group, row))
                    row += metadata.row_group(group).num_rows
                    starts.append(starts[-1] + metadata.row_group(group).num_rows)
                sizes.append(Path(path).stat().st_size)
        self._starts, self._sizes = array("Q", starts), array("Q", sizes)

    @property
    def fingerprint(self) -> str:
        """Of the column, and the files' sizes and rows."""
        return _fingerprint(self._column.encode(), self._sizes.tobytes(), self._starts.tobytes())

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Yields the rows of a range; a few at a time are in memory."""
        group = bisect_right(self._starts, start) - 1
        columns = [self._column, *(["id"] if self._has_id else [])]
        while start < stop:
            number, row_group, first_row = self._groups[group]
            path, end = self._files[number], min(stop, self._starts[group + 1])
            index = self._starts[group]
            with _open_parquet(path) as file:
                for batch in file.iter_batches(_READ_ROWS, [row_group], columns):
                    if index >= end:
                        break
                    if index + batch.num_rows > start:
                        skipped = max(start - index, 0)
                        rows = batch.slice(skipped, end - index - skipped).to_pylist()
                        for at, row in enumerate(rows, index + skipped):
                            yield self._item(path, at, first_row + at - self._starts[group], row)
                    index += batch.num_rows
            start, group = end, group + 1

    def _item(self, path: str, index: int, row: int, values: dict[str, Any]) -> Item:
        where, value = f"{path}#{row}", values[self._column]
        name = f"{Path(path).name}#{row}" if values.get("id") is None else str(values["id"])
        if isinstance(value, dict):
            inner = value.get("path")
            value = inner if value.get("bytes") is None else value["bytes"]
            where = where if inner is None or value is inner else f"{where} ({inner})"
        if isinstance(value, str):
            file = os.path.join(os.path.dirname(path), value)  # noqa: PTH118, PTH120
            return Item(index, shown(name), shown(file), _Load(file))
        return Item(index, shown(name), shown(where), _Bytes(value))


@dataclass(frozen=True, slots=True)
class _Bytes:
    data: bytes | None

    def __call__(self) -> bytes:
        if self.data is None:
            raise ValueError("the row holds no image")
        return self.data


def _open_parquet(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: it cannot be read as a Parquet file ({error})") from error


def _find_column(path: str, schema: Any, column: str | None) -> str:
    import pyarrow.types as types

    def fits(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return any(
            test(kind)
            for test in (
                *(types.is_binary, types.is_large_binary, types.is_binary_view),
                *(types.is_string, types.is_large_string, types.is_string_view),
            )
        )

    fitting = [field.name for field in schema if fits(field.type)]
    if column is not None:
        if column not in fitting:
            raise InputError(
                f"{path}: no column {column!r} with images (bytes, or a struct with bytes) or "
                f"paths; there is {', '.join(fitting) or 'none'}"
            )
        return column
    for name in _COLUMNS:
        if name in fitting:
            return name
    raise InputError(
        f"{path}: none of its columns is called {', '.join(_COLUMNS)}; name one with "
        f"--column: {', '.join(fitting) or 'but none holds bytes or text'}"
    )
