"""Cuts the list of inputs into parts, one shard each, and the parts into shares."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A range of the inputs, written to one shard.

    Attributes:
        number: Its number, from 0.
        count: The number of parts.
        start: Its first input.
        stop: The first input after it.
    """

    number: int
    count: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The name of its shard, without suffix; the names sort in the order of the parts."""
        digits = max(5, len(str(self.count)))
        return f"part-{self.number:0{digits}d}-of-{self.count:0{digits}d}"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Share:
    """The share of a job that one process does: ``number``, from 0, of ``count`` shares."""

    number: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def range(self, part_count: int) -> tuple[int, int]:
        """Returns the first part of this share, and the first after it."""
        return self.number * part_count // self.count, (self.number + 1) * part_count // self.count


def cut(input_count: int, shard_size: int) -> list[Part]:
    """Cuts inputs into parts of ``shard_size``; the last may be smaller."""
    count = -(-input_count // shard_size)
    return [
        Part(number, count, number * shard_size, min((number + 1) * shard_size, input_count))
        for number in range(count)
    ]


def merge(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Returns the ranges of inputs that parts cover; adjacent parts form one range."""
    ranges: list[tuple[int, int]] = []
    for part in parts:
        if ranges and ranges[-1][1] == part.start:
            ranges[-1] = ranges[-1][0], part.stop
        else:
            ranges.append((part.start, part.stop))
    return ranges
