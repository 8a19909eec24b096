"""What explains the images of a job: the one part in which its engines differ."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from gradcam_server.batch.schema import Row
from gradcam_server.batch.sources.base import Source

Ranges: TypeAlias = Sequence[tuple[int, int]]
"""Ranges of a source: (first input, first input after it), ascending."""


class Stage(Protocol):
    """Explains images."""

    def rows(self, source: Source, ranges: Ranges) -> Iterator[Row]:
        """Yields one row for each image of the ranges, in their order.

        It works ahead of what is taken, but only so far: rows and images in memory are bounded.
        An image that cannot be read, decoded or computed is a row that says so.

        Raises:
            BatchError: The images cannot be explained as asked, or nobody does it any more.
        """
        ...


OpenStage: TypeAlias = Callable[[], AbstractContextManager[Stage]]
