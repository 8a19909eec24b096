"""What is kept of one source from frame to frame, as the watcher asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gradcam_client import ImageExplanation
from gradcam_client.results import Explanation
from gradcam_server.watch.frames import Frame


class Choice(StrEnum):
    """What is done with a frame."""

    COMPUTE = "compute"
    REUSE = "reuse"
    AUDIT = "audit"  # it could be reused, and is computed to measure the error


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with a frame.

    Attributes:
        choice: What.
        explanation: The answer to use again, of a frame that is reused.
    """

    choice: Choice
    explanation: ImageExplanation | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """The class that is shown of a frame, and its map: ``target`` and ``heat`` of the result."""

    target: str
    heat: NDArray[np.float32] | None


class StreamState(Protocol):
    """The state of one source. The calls for a frame come in this order, frame by frame.

    ``decide`` and ``shown`` come in the order of the frames, each from one thread at a time;
    with several calls in flight, ``learn`` may come for a later frame first.
    """

    def decide(self, frame: Frame) -> Decision:
        """Decides what is done with a frame."""

    def classes(self) -> Sequence[int | str]:
        """Returns the classes to explain next; none is the best one."""

    def learn(self, frame: Frame, explanation: ImageExplanation) -> None:
        """Takes the answer for a frame that was computed."""

    def shown(self, frame: Frame, explanation: ImageExplanation) -> Shown:
        """Returns what is shown of a frame, explained or reused."""


class FrameByFrame:
    """Keeps nothing: each frame is computed, and its map is shown as it is.

    Args:
        classes: The classes to explain; none is the best one of each frame.
    """

    def __init__(self, classes: Sequence[int | str] = ()) -> None:
        self._classes = tuple(classes)

    def decide(self, frame: Frame) -> Decision:  # noqa: ARG002 - each is computed
        """Returns that the frame is computed."""
        return Decision(Choice.COMPUTE)

    def classes(self) -> Sequence[int | str]:
        """Returns the classes that were given."""
        return self._classes

    def learn(self, frame: Frame, explanation: ImageExplanation) -> None:
        """Learns nothing."""

    def shown(self, frame: Frame, explanation: ImageExplanation) -> Shown:  # noqa: ARG002
        """Returns the explained class and its map, divided by its maximum."""
        first = explanation.explanations[0]
        return Shown(title(first), first.heatmap / np.float32(first.heatmap.max() or 1))


def title(explanation: Explanation) -> str:
    """Returns index and name of the explained class, such as "281 tabby"."""
    return f"{explanation.index} {explanation.name}".rstrip()
