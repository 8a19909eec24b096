"""Parquet files: images or their paths in a column, a row for each image."""

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from gradcam_server.batch.errors import InputError
from gradcam_server.batch.sources.base import Item, ReadFile, Strings, fingerprint, printable
from gradcam_server.images.file_names import SUFFIXES, reason_to_leave_out

# Without --column, the first of these columns that the file has holds the images.
_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "image_path", "file_path", "path", "file_name")
_READ_ROWS = 64
_BYTES = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
_TEXT = (types.is_string, types.is_large_string, types.is_string_view)
_LISTS = (
    *(types.is_list, types.is_large_list, types.is_fixed_size_list),
    *(types.is_list_view, types.is_large_list_view),
)


class ParquetSource:
    """The rows of Parquet files: images as bytes or {bytes, path}, or paths.

    The storage of a column does not matter: it may be dictionary-encoded, or of an extension type.
    Each row is an input, so a path that is not an image's is an error of its row. The ids are
    those of a column ``id``, or else made of the file's name and the row's number.

    Args:
        paths: The files, in order.
        column: The column; None is the first of ``_COLUMNS``.

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
        """A hash of the column's name, and the files' sizes and rows."""
        return fingerprint(self._column.encode(), self._sizes.tobytes(), self._starts.tobytes())

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Yields the rows of a range; holds ``_READ_ROWS`` of them in memory."""
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
        return Item(index, printable(name), printable(where), _Bytes(value))
    file = os.path.join(os.path.dirname(path), value)  # noqa: PTH118, PTH120
    reason = reason_to_leave_out(value, is_listed=True)
    load = ReadFile(file) if reason is None else _NoImage(reason)
    return Item(index, printable(name), printable(file), load)


def _values(column: Any) -> list[Any]:
    """Returns the values of a column as Python objects, whatever their storage."""
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
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: it cannot be read as a Parquet file ({error})") from error


def _find_column(path: str, schema: Any, column: str | None) -> str:
    """Returns the column of images: the given one, or the first of ``_COLUMNS``.

    Raises:
        InputError: There is none, or its values are not images or paths.
    """
    kinds = {field.name: _plain_type(field.type) for field in schema}
    fitting = [name for name, kind in kinds.items() if _is_image_type(kind)]
    if column is None:
        # A column of lists is found, too: it gets an error of its own below.
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
    """Returns the type of a column's values, whatever their storage."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def _is_image_type(kind: Any) -> bool:
    """Returns whether values are bytes, text, or a struct of both, as Hugging Face writes."""
    if types.is_struct(kind):
        fields = {field.name: _plain_type(field.type) for field in kind}
        data, path = fields.get("bytes", pa.null()), fields.get("path", pa.null())
        return (_is_bytes(data) and (_is_text(path) or types.is_null(path))) or (
            types.is_null(data) and _is_text(path)
        )
    return _is_bytes(kind) or _is_text(kind)


def _is_bytes(kind: Any) -> bool:
    return any(test(kind) for test in _BYTES)


def _is_text(kind: Any) -> bool:
    return any(test(kind) for test in _TEXT)


def _is_list(kind: Any) -> bool:
    return kind is not None and any(test(kind) for test in _LISTS)
