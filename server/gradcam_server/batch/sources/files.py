"""Image files: those of a folder, of a pattern, or of a text file that lists their paths."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gradcam_server.batch.errors import InputError
from gradcam_server.batch.sources.base import Item, ReadFile, Strings, printable
from gradcam_server.images.file_names import is_hidden

# As text that is read as UTF-8 with escapes, byte for byte.
_BYTE_ORDER_MARK, _UTF16_MARKS = "\ufeff", ("\udcff\udcfe", "\udcfe\udcff")


class FileSource:
    """Files by their paths.

    Args:
        kind: What the list came from.
        paths: The paths, relative to ``root``.
        root: The folder of relative paths; empty is the current one.
        left_out: Files beside them that are not images, by kind; may be counted while ``paths``
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
        """A hash of the names alone: the files' content is not read twice."""
        return self._paths.fingerprint

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Yields the files of a range."""
        for index in range(start, stop):
            name = self._paths[index]
            path = os.path.join(self._root, name)  # noqa: PTH118 - Path would remove "./"
            yield Item(index, printable(name), printable(path), ReadFile(path))


def walk(root: str, outside: Path | None) -> Iterator[str]:
    """Yields the files of a folder and all below it, relative to it, in the order of their names.

    Args:
        root: The folder.
        outside: A folder to leave out; hidden folders are left out, too.
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


def read_list(path: Path) -> Iterator[str]:
    """Yields the paths of a list: UTF-8 (names may hold other bytes), a path on each line.

    Blank lines, byte order marks and white space at the ends of lines are ignored. There are no
    comments: a name may begin with "#".

    Raises:
        InputError: It is not such a list.
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
