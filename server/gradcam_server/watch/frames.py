"""What the parts of ``gradcam watch`` hand to each other: frames and their results."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradcam_client import ImageExplanation

Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 RGB (height, width, 3)."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame of a video, or a file of a folder.

    Attributes:
        source: The name of its source.
        number: From 0, counting all frames that were read from this source.
        time_s: Of a video file, its presentation time; else the Unix time when it was read.
        read_at: When it was read, of ``time.monotonic``.
        image: uint8 RGB (height, width, 3).
        is_live: Whether only the newest frame counts.
        path: The file, if it is a file of a folder.
        encoded: The file's bytes, which are then sent instead of the pixels.
    """

    source: str
    number: int
    time_s: float
    read_at: float
    image: Pixels
    is_live: bool
    path: Path | None = None
    encoded: bytes | None = None


class Status(StrEnum):
    """Where the result of a frame comes from."""

    EXPLAINED = "explained"
    REUSED = "reused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, eq=False)
class FrameResult:
    """What is known of a frame.

    Attributes:
        frame: The frame.
        status: Where the result comes from.
        explanation: The answer; of a reused frame an earlier one; None if the frame failed.
        target: Index and name of the class that the map is of, such as "281 tabby".
        heat: float32 (h, w), 0 to 1: the map of the target, smoothed over time, at the layer's
            resolution or finer, over the explanation's ``image_extent``; None if it failed.
        error: Why it failed, else empty.
        lag_s: Seconds from the reading of the frame to its result.
    """

    frame: Frame
    status: Status
    explanation: ImageExplanation | None
    target: str
    heat: NDArray[np.float32] | None
    error: str
    lag_s: float


class FrameSource(Protocol):
    """A camera, stream, video file or folder."""

    @property
    def name(self) -> str:
        """Its name, unique among the sources."""

    @property
    def is_live(self) -> bool:
        """Whether only the newest frame counts."""

    def frames(self) -> Iterator[Frame]:
        """Yields frames, and blocks until there is one.

        A live source opens again with back-off and never ends; a file ends.
        """

    def done(self, frame: Frame) -> None:
        """Says that the result of a frame is written; called from another thread."""

    def close(self) -> None:
        """Ends ``frames()`` within a second; called from another thread."""
