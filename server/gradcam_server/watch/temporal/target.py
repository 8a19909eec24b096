"""Holds the explained class while the best class changes only for a moment."""


class TargetHold:
    """The class to explain: the best one, until another is the best for some frames in a row.

    The map of a held class needs a request for that class, so ``target`` is what the next request
    names. After a change the map of the new class comes with the next answer.

    Args:
        frames: How many computed frames in a row another class must be the best one; 1 follows
            every change.

    Raises:
        ValueError: ``frames`` is less than 1.
    """

    def __init__(self, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"a target is held for 1 frame or more, not {frames}")
        self._frames = frames
        self._target: int | None = None
        self._other: int | None = None
        self._count = 0

    @property
    def target(self) -> int | None:
        """The index of the class to explain next; None is the best one."""
        return self._target

    def choose(self, best: int) -> int:
        """Takes the best class of a computed frame, in the order of the frames.

        Returns:
            The index of the class that is held from now on.
        """
        if self._target is None or best == self._target:
            self._other, self._count = None, 0
            self._target = best if self._target is None else self._target
            return self._target
        self._count = self._count + 1 if best == self._other else 1
        self._other = best
        if self._count >= self._frames:
            self._target, self._other, self._count = best, None, 0
        return self._target

    def reset(self) -> None:
        """Forgets the class: at a cut."""
        self._target, self._other, self._count = None, None, 0
