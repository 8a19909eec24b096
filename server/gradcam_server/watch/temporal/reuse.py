"""Decides which frames are computed, and which take the last answer."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gradcam_client import ImageExplanation
from gradcam_server.watch.frames import Frame, Pixels
from gradcam_server.watch.stream_state import Choice, Decision
from gradcam_server.watch.temporal.audit import Audit, map_correlation

_SIDE = 64
_BLOCKS = 8
MAX_PENDING = 256
"""Frames on their way that are remembered; of a frame that failed, nobody hears again."""


@dataclass(frozen=True, slots=True, eq=False)
class _Computed:
    """A frame that was computed, or is: small, and of which frame it is."""

    number: int
    time_s: float
    picture: NDArray[np.int16]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """The answer that is used again."""

    of: _Computed
    answer: ImageExplanation


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A frame of which an answer is due; an audit's is compared with what reuse would give."""

    frame: _Computed
    audited: ImageExplanation | None


class ReusePolicy:
    """Uses the last answer again while a frame differs little from the one that it is of.

    The change counts from the last computed frame, not from the last frame, so that a slow fade
    adds up. A share of the frames that would be reused is computed all the same, at random; their
    answers measure the error of reuse, and change nothing else, for the reason in ``audit``.

    Answers may be learned in any order. One thread at a time decides, and one learns.

    Args:
        threshold: The highest change, in grey levels (0 to 255); see ``change``.
        audit_share: The share of reused frames that are computed all the same, 0 to 1.
        max_age_s: An answer older than this is not used again: it bounds what escapes the
            threshold. Seconds by the times of the frames.
        seed: Of the random choice.

    Raises:
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        threshold: float,
        audit_share: float = 0.05,
        *,
        max_age_s: float = 10.0,
        seed: int | None = None,
    ) -> None:
        if not threshold >= 0:
            raise ValueError(f"a threshold of change is 0 or more grey levels, not {threshold}")
        if not 0 <= audit_share <= 1:
            raise ValueError(f"the share of audits is from 0 to 1, not {audit_share}")
        self._threshold, self._share, self._max_age_s = threshold, audit_share, max_age_s
        self._random = np.random.default_rng(seed)
        self._kept: _Kept | None = None
        self._asked: dict[int, _Asked] = {}
        self.audit = Audit(audit_share)

    def decide(self, frame: Frame) -> Decision:
        """Decides what is done with a frame. The frames come in their order."""
        computed = _Computed(
            frame.number, frame.time_s, small_picture(frame.image), frame.image.shape
        )
        kept = self._kept
        if kept is None or not self._is_alike(kept.of, computed):
            self._ask(computed, None)
            return Decision(Choice.COMPUTE)
        if self._random.random() < self._share:
            self.audit.asked += 1
            self._ask(computed, kept.answer)
            return Decision(Choice.AUDIT)
        self.audit.reused += 1
        return Decision(Choice.REUSE, kept.answer)

    def learn(self, frame: Frame, answer: ImageExplanation) -> None:
        """Takes the answer for a frame that was computed or audited."""
        asked = self._asked.pop(frame.number, None)
        if asked is None:
            return
        if asked.audited is not None:
            self._compare(asked.audited, answer)
        elif self._kept is None or self._kept.of.number < frame.number:
            self._kept = _Kept(asked.frame, answer)

    def forget(self) -> None:
        """Has the next frame computed: the kept answer is of another class."""
        self._kept = None

    def _is_alike(self, kept: _Computed, frame: _Computed) -> bool:
        return (
            kept.shape == frame.shape
            and 0 <= frame.time_s - kept.time_s <= self._max_age_s
            and change(kept.picture, frame.picture) <= self._threshold
        )

    def _ask(self, frame: _Computed, audited: ImageExplanation | None) -> None:
        self._asked[frame.number] = _Asked(frame, audited)
        if len(self._asked) > MAX_PENDING:
            del self._asked[next(iter(self._asked))]

    def _compare(self, reused: ImageExplanation, answer: ImageExplanation) -> None:
        self.audit.add(
            is_missed=reused.predictions[0].index != answer.predictions[0].index,
            correlation=map_correlation(
                reused.explanations[0].heatmap, answer.explanations[0].heatmap
            ),
        )


def small_picture(image: Pixels) -> NDArray[np.int16]:
    """Returns a frame in 64 x 64 pixels, whatever its shape: int16 (64, 64, 3)."""
    shrunk = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    picture: NDArray[np.int16] = shrunk.astype(np.int16)
    return picture


def change(one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
    """Returns the mean absolute difference of the block that changed most, in grey levels.

    A picture has 8 x 8 blocks, so that a small object counts as much as a large one. Noise of
    the camera is averaged away, by the small picture first.
    """
    side = _SIDE // _BLOCKS
    blocks = np.abs(one - other).reshape(_BLOCKS, side, _BLOCKS, side, -1)
    return float(blocks.mean(axis=(1, 3, 4)).max())
