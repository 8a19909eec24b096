"""Where images come from: a list that is the same each time, and a way to read any part of it.

Nothing here decodes. A source keeps its list compactly, so that millions of images take megabytes,
and can be pickled: other processes read parts of it. ``image_names`` says what is an image, for all
sources alike.
"""

import glob
import hashlib
import os
import re
import stat
import tarfile
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, Protocol

from gradcam_server.batch.errors import InputError
from gradcam_server.images.file_names import (
    SUFFIXES,
    describe_left_out,
    images_among,
    is_hidden,
    reason_to_leave_out,
)

_LIST_SUFFIXES = (".list", ".lst", ".txt")
_MAX_FILE_BYTES = 256 * 1024 * 1024
# Columns that are taken for the image if none is named, the first that is there.
_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "image_path", "file_path", "path", "file_name")
_READ_ROWS = 64
# As text that is read as UTF-8 with escapes, byte for byte.
_BYTE_ORDER_MARK, _UTF16_MARKS = "\ufeff", ("\udcff\udcfe", "\udcfe\udcff")


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

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many files were found that are not images, by kind (see ``image_names``)."""
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
    left_out: Counter[str] = Counter()
    if path.is_dir():
        names = images_among(_walk(where, outside), left_out)
        source: Source = FileSource("folder", names, root=where, left_out=left_out)
        if not len(source):
            also = f"; {describe_left_out(left_out)}" if left_out else ""
            raise InputError(f"{where}: no image in this folder or below it ({_hint(path)}{also})")
    elif path.exists():
        source = _open_file(where, path, column)
    elif glob.has_magic(where):
        source = _open_files(where, sorted(glob.iglob(where, recursive=True)), column)  # noqa: PTH207
    else:
        raise InputError(f"{where}: there is no such folder or file")
    if not len(source):
        also = f" ({describe_left_out(source.left_out)})" if source.left_out else ""
        raise InputError(f"{where}: there are no images in it{also}")
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
        left_out: Counter[str] = Counter()
        names = images_among(_lines(path), left_out, is_listed=True)
        try:
            return FileSource("list", names, root=str(path.parent), left_out=left_out)
        except OSError as error:
            raise InputError(f"{where}: it cannot be read as a list of paths ({error})") from error
    raise InputError(
        f"{where}: it must be a folder, a pattern, an image, or a file that ends in .parquet, .tar "
        f"or {', '.join(_LIST_SUFFIXES)} (a path on each line)"
    )


def _open_files(where: str, paths: Sequence[str], column: str | None) -> Source:
    if not paths:
        raise InputError(f"{where}: nothing matches this pattern")
    suffixes = {Path(path).suffix.lower() for path in paths}
    if suffixes == {".tar"}:
        return TarSource(paths)
    if suffixes == {".parquet"}:
        return ParquetSource(paths, column)
    root = str(Path(*takewhile(lambda part: not glob.has_magic(part), Path(where).parts)))
    left_out: Counter[str] = Counter()
    files = (path for path in paths if not Path(path).is_dir())
    source = FileSource("glob", images_among(files, left_out, root=root), left_out=left_out)
    if not len(source):
        raise InputError(
            f"{where}: of {len(paths)} names that match none ends in {', '.join(SUFFIXES)}, and "
            "they are not all .tar or all .parquet"
        )
    return source


def _walk(root: str, outside: Path | None) -> Iterator[str]:
    """Yields the files of a folder, relative to it, in the order of their names.

    Hidden folders and ``outside`` are passed over.
    """
    skipped = None if outside is None else outside.resolve()
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if not is_hidden(name) and Path(folder, name).resolve() != skipped
        )
        relative = os.path.relpath(folder, root)
        for name in sorted(files):
            yield name if relative == "." else f"{relative}/{name}"


def _lines(path: Path) -> Iterator[str]:
    """Yields the paths of a list: UTF-8 (names may hold other bytes), a path on each line.

    Blank lines and byte order marks are passed over, and white space at the ends of lines. There
    are no comments: a name may begin with "#".
    """
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if "\0" in line or (number == 1 and line.startswith(_UTF16_MARKS)):
                raise InputError(
                    f"{path}: it is not a list in UTF-8 (it may be UTF-16, or have no lines, as of "
                    "find -print0): save it as UTF-8 text with a path on each line"
                )
            name = line.removeprefix(_BYTE_ORDER_MARK).rstrip()
            if re.match("[a-zA-Z][a-zA-Z0-9+.-]*://", name):
                raise InputError(
                    f"{path}, line {number}: {name[:80]!r} is a link, and gradcam batch reads "
                    "files: download them, and list their paths"
                )
            if name:
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
        left_out: Files beside them that are no images, by kind; may be counted while ``paths``
            are read.
    """

    def __init__(
        self,
        kind: str,
        paths: Iterable[str],
        root: str = "",
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        self.kind = kind
        self._paths, self._root = Strings(paths), root
        self.left_out: Mapping[str, int] = dict(left_out or {})

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
        self.left_out: Counter[str] = Counter()
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
                        names = [member.name.removeprefix("./")] if member.isreg() else []
                        for name in images_among(names, self.left_out):
                            self._offsets.append(member.offset_data)
                            self._sizes.append(member.size)
                            counts[-1] += 1
                            yield name
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

    Values count, not how they are stored: a column may be dictionary-encoded, or of an extension
    type. Each row is an input, so a path that is not an image's is an error of its row. A column
    ``id`` gives the ids; else the file's name and the row's number do.

    Args:
        paths: The files, in order.
        column: The column; None is the first that looks like it.

    Raises:
        InputError: A file cannot be read, or has no such column.
    """

    kind = "parquet"
    left_out: Mapping[str, int] = {}

    def __init__(self, paths: Sequence[str], column: str | None = None) -> None:
        self._files = Strings(paths)
        self._groups: list[tuple[int, int, int]] = []  # (file, row group, its first row in it)
        starts, sizes = [0], []
        for number, path in enumerate(paths):
            with _open_parquet(path) as file:
                if number == 0:
                    self._column = _find_column(path, file.schema_arrow, column)
                    self._has_id = "id" in file.schema_arrow.names and self._column != "id"
                else:
                    _find_column(path, file.schema_arrow, self._column)
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
                        rows = batch.slice(skipped, end - index - skipped)
                        values = _values(rows.column(self._column))
                        ids = _values(rows.column("id")) if self._has_id else [None] * len(values)
                        for at, (value, id_) in enumerate(
                            zip(values, ids, strict=True), index + skipped
                        ):
                            row = first_row + at - self._starts[group]
                            yield _row_item(path, at, row, value, id_)
                    index += batch.num_rows
            start, group = end, group + 1


def _row_item(path: str, index: int, row: int, value: Any, id_: Any) -> Item:
    name = f"{Path(path).name}#{row}" if id_ is None else str(id_)
    where = f"{path}#{row}"
    if isinstance(value, dict):
        inner = value.get("path")
        value = inner if value.get("bytes") is None else value["bytes"]
        where = where if inner is None or value is inner else f"{where} ({inner})"
    if not isinstance(value, str):
        return Item(index, shown(name), shown(where), _Bytes(value))
    file = os.path.join(os.path.dirname(path), value)  # noqa: PTH118, PTH120
    reason = reason_to_leave_out(value, is_listed=True)
    load = _Load(file) if reason is None else _NoImage(reason)
    return Item(index, shown(name), shown(file), load)


def _values(column: Any) -> list[Any]:
    """Returns the values of a column as Python's, whatever they are stored as."""
    import pyarrow as pa

    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    return list(column.to_pylist())


@dataclass(frozen=True, slots=True)
class _NoImage:
    reason: str

    def __call__(self) -> bytes:
        raise ValueError(
            f"the row names no image ({self.reason}): names end in {', '.join(SUFFIXES)}"
        )


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
    """Returns the column of images: the one that was named, or the first that looks like it."""
    kinds = {field.name: _plain_type(field.type) for field in schema}
    fitting = [name for name, kind in kinds.items() if _is_image_type(kind)]
    if column is None:
        # A list of images would have been meant, so it is told, not passed over.
        candidates = (name for name in _COLUMNS if name in fitting or _is_list(kinds.get(name)))
        column = next(candidates, None)
        if column is None:
            others = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise InputError(
                f"{path}: none of its columns is called {', '.join(_COLUMNS)}; name one with "
                f"--column: {', '.join(fitting) or f'but none holds bytes or text: {others}'}"
            )
    if column not in kinds:
        raise InputError(
            f"{path}: it has no column {column!r}; with images or paths there is "
            f"{', '.join(fitting) or 'none'}"
        )
    if column not in fitting:
        several = (
            " A row with several images must become several rows: flatten the list, such as by "
            "DataFrame.explode of pandas or UNNEST of SQL."
            if _is_list(kinds[column])
            else ""
        )
        raise InputError(
            f"{path}: the column {column!r} has the type {schema.field(column).type}, and each row "
            "must hold one image: bytes, a struct of bytes and path, or a path as text."
            f"{several} Columns that fit: {', '.join(fitting) or 'none'}"
        )
    return column


def _plain_type(kind: Any) -> Any:
    """Returns the type of a column's values, without how they are stored."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def _is_image_type(kind: Any) -> bool:
    """Returns whether values are bytes, text, or a struct of both, as of Hugging Face."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_struct(kind):
        fields = {field.name: _plain_type(field.type) for field in kind}
        data, path = fields.get("bytes", pa.null()), fields.get("path", pa.null())
        return (_is_bytes(data) and (_is_text(path) or types.is_null(path))) or (
            types.is_null(data) and _is_text(path)
        )
    return _is_bytes(kind) or _is_text(kind)


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in (*tests, types.is_binary_view))


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in tests)


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    views = (types.is_list_view, types.is_large_list_view)
    return kind is not None and any(test(kind) for test in (*tests, *views))
