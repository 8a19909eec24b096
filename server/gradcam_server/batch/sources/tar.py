"""WebDataset's shards: the images among the members of uncompressed tar files."""

import tarfile
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from gradcam_server.batch.errors import InputError
from gradcam_server.batch.sources.base import Item, ReadFile, Strings, fingerprint, printable
from gradcam_server.images.file_names import images_among


class TarSource:
    """The images in tar files.

    Args:
        paths: The files, in order.

    Raises:
        InputError: A file is not an uncompressed tar file.
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
        """A hash of the members' names, offsets and sizes."""
        parts = self._offsets.tobytes(), self._sizes.tobytes(), repr(self._starts).encode()
        return fingerprint(self._names.fingerprint.encode(), *parts)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Yields the members of a range."""
        for index in range(start, stop):
            path = self._files[bisect_right(self._starts, index) - 1]
            name = f"{Path(path).name}/{self._names[index]}"
            where = f"{path}/{self._names[index]}"
            load = ReadFile(path, self._offsets[index], self._sizes[index])
            yield Item(index, printable(name), printable(where), load)
