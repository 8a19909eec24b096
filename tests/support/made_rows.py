"""Parts of jobs without a model: a source of numbers, and a stage that makes rows of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from gradcam_server.batch.schema import OK, Row, error_row
from gradcam_server.batch.sources.base import Item, Source
from gradcam_server.batch.stage import Ranges


@dataclass(frozen=True)
class Numbers:
    """A source of ``count`` images, whose bytes are their numbers."""

    count: int
    fingerprint: str = "numbers"
    kind: str = "numbers"
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Yields the items of a range."""
        for index in range(start, stop):
            yield Item(index, str(index), f"/{index}", str(index).encode)


@dataclass
class MadeStage:
    """A stage that answers at once.

    Attributes:
        failing: The images that fail.
        dies_at: The row at which it raises instead.
        made: The indices of its rows.
        opened: How often it was opened.
    """

    failing: frozenset[int] = frozenset()
    dies_at: int | None = None
    made: list[int] = field(default_factory=list)
    opened: int = 0

    def __enter__(self) -> Self:
        self.opened += 1
        return self

    def __exit__(self, *_: object) -> None: ...

    def rows(self, source: Source, ranges: Ranges) -> Iterator[Row]:
        """Yields rows."""
        for start, stop in ranges:
            for item in source.read(start, stop):
                if item.index == self.dies_at:
                    raise Died
                self.made.append(item.index)
                yield error_row(item, "bad") if item.index in self.failing else made_row(item)


class Died(BaseException):
    """Not an Exception, like KeyboardInterrupt: a job must not catch it."""


def made_row(item: Item, **values: Any) -> Row:
    """Returns a row with a map of shape (2, 2)."""
    row = Row(item.index, item.id, item.path, OK, width=4, height=3)
    row.class_index, row.class_name, row.probability = [7, 8], ["seven", "eight"], [0.75, 0.25]
    row.target, row.target_name, row.score = 7, "seven", 2.5
    row.heatmap, row.heatmap_dtype = bytes.fromhex("0000003c00400042"), "float16"  # 0 1 2 3
    row.heatmap_height, row.heatmap_width, row.heatmap_scale = 2, 2, 1.0
    row.raw_min, row.raw_max, row.degenerate = -1.0, 3.0, False
    row.layer, row.method, row.model, row.model_version = "top", "gradcam", "made", ""
    for name, value in values.items():
        setattr(row, name, value)
    return row


class Quiet:
    """A reporter that stores its calls."""

    def __init__(self) -> None:
        self.begun: tuple[int, int, int] | None = None
        self.count = 0

    def begin(self, total: int, finished: int, errors: int) -> None:
        """The job begins."""
        self.begun = total, finished, errors

    def advance(self, row: Row) -> None:
        """An image is done."""
        self.count += 1
