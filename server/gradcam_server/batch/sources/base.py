"""Images and their sources, and parts of all sources: storage of names, reading of files."""

import hashlib
import os
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_MAX_FILE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Attributes:
        index: Its position in the list, from 0.
        id: Its name, for people: a path below the folder, or the names of shard and member.
        path: Its location.
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
        """The kind of source, for the manifest."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash that differs for other images, more images, or another order."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many files were found that are not images, by kind (see ``file_names``)."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Yields the images of a range, in order; their bytes are read by ``Item.load``."""
        ...


class Strings(Sequence[str]):
    """Many strings in one buffer, at 8 bytes each beside their characters.

    Args:
        strings: The strings; file names may hold bytes that are not UTF-8.
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
            return [self[position] for position in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._text[self._ends[index - 1] if index else 0 : self._ends[index]])

    @property
    def fingerprint(self) -> str:
        """A hash of all strings."""
        return fingerprint(self._text, self._ends.tobytes())


def fingerprint(*parts: bytes) -> str:
    """Returns a hash of byte strings: SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def printable(name: str) -> str:
    """Returns a file's name as text that can be stored: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class ReadFile:
    """Reads a file, or ``size`` bytes of it from ``offset``."""

    path: str
    offset: int = 0
    size: int | None = None

    def __call__(self) -> bytes:
        # Opening or reading a pipe must not block.
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
