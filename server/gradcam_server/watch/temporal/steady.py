"""The state of a source that reuses answers, holds the target and smooths its map."""

from collections.abc import Sequence

from gradcam_client import ImageExplanation
from gradcam_client.extents import Extent
from gradcam_server.watch.frames import Frame
from gradcam_server.watch.stream_state import Choice, Decision, Shown, title
from gradcam_server.watch.temporal.audit import Audit
from gradcam_server.watch.temporal.cuts import is_cut
from gradcam_server.watch.temporal.motion import MotionEstimator, small_gray
from gradcam_server.watch.temporal.reuse import MAX_PENDING, ReusePolicy
from gradcam_server.watch.temporal.smoothing import MapSmoother
from gradcam_server.watch.temporal.target import TargetHold


class SteadyStream:
    """Is the ``StreamState`` of one source, for requests of raw maps.

    Args:
        classes: The classes to explain; the first one is shown. None is the best one.
        hold: Holds the class; None explains each frame's best one. Not with ``classes``.
        reuse: Decides which answers are used again; None computes every frame.
        smoother: Smooths the maps; None shows each map as it is.

    Raises:
        ValueError: Both ``classes`` and ``hold`` are given.
    """

    def __init__(
        self,
        classes: Sequence[int | str] = (),
        *,
        hold: TargetHold | None = None,
        reuse: ReusePolicy | None = None,
        smoother: MapSmoother | None = None,
    ) -> None:
        if classes and hold is not None:
            raise ValueError("a class is held, or given, not both")
        self._classes, self._hold, self._reuse = tuple(classes), hold, reuse
        self._smoother = smoother or MapSmoother(0)
        self._motion = MotionEstimator()
        self._choices: dict[int, Choice] = {}
        self._target: int | None = None
        self._extent: Extent | None = None

    @property
    def audit(self) -> Audit | None:
        """What the audits found so far; None without reuse."""
        return self._reuse.audit if self._reuse else None

    def decide(self, frame: Frame) -> Decision:
        """Decides what is done with a frame."""
        decision = self._reuse.decide(frame) if self._reuse else Decision(Choice.COMPUTE)
        self._choices[frame.number] = decision.choice
        if len(self._choices) > MAX_PENDING:
            del self._choices[next(iter(self._choices))]
        return decision

    def classes(self) -> Sequence[int | str]:
        """Returns the classes to explain next; none is the best one."""
        if self._hold is None or self._hold.target is None:
            return self._classes
        return (self._hold.target,)

    def learn(self, frame: Frame, explanation: ImageExplanation) -> None:
        """Takes the answer for a frame that was computed."""
        if self._reuse is not None:
            self._reuse.learn(frame, explanation)

    def shown(self, frame: Frame, explanation: ImageExplanation) -> Shown:
        """Returns the class of a frame and its map, which covers the ``image_extent``."""
        explained = explanation.explanations[0]
        motion = self._motion.update(small_gray(frame.image, explained.image_extent))
        if explained.image_extent != self._extent:
            motion = None  # of two parts of the frame
        elif motion is not None and is_cut(motion):
            motion = None
            if self._hold is not None:
                self._hold.reset()
        if explained.index != self._target:
            motion = None
        self._target, self._extent = explained.index, explained.image_extent
        heat = self._smoother.update(motion, explained.heatmap, frame.time_s)
        self._choose(frame, explanation)
        return Shown(title(explained), heat)

    def _choose(self, frame: Frame, explanation: ImageExplanation) -> None:
        """Holds the target; audits have no say, as they have none in reuse."""
        choice = self._choices.pop(frame.number, None)
        # Frames that failed are not shown.
        self._choices = {n: kept for n, kept in self._choices.items() if n > frame.number}
        if self._hold is None or choice is not Choice.COMPUTE:
            return
        best = explanation.predictions[0].index
        target = self._hold.choose(best)
        # While another class is the best, frames are computed until it is held or gone: in a scene
        # at rest reuse would put that off for minutes.
        if self._reuse is not None and not best == target == explanation.explanations[0].index:
            self._reuse.forget()
