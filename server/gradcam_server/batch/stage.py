"""The protocol of stages, which explain the images of a job, each by another engine."""

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

        A stage works ahead of the rows that are taken, by a bounded number of images. An image
        that cannot be read, decoded or computed gives a row with the error.

        Raises:
            BatchError: An option is wrong for all images, or no engine is left.
        """
        ...


OpenStage: TypeAlias = Callable[[], AbstractContextManager[Stage]]
