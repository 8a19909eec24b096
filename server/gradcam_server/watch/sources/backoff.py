"""Pauses before a source is opened again."""

import random

FIRST_S, MAX_S = 0.5, 30.0


class Backoff:
    """Pauses that double from 0.5 s to 30 s, each shortened by a random part of up to a half.

    The random part keeps many cameras behind one switch from coming back at the same moment.
    """

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def pause_s(self) -> float:
        """Returns the next pause in seconds."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, MAX_S)
        return pause_s * random.uniform(0.5, 1)  # noqa: S311 - no secret

    def reset(self) -> None:
        """Starts again from the shortest pause."""
        self._next_s = FIRST_S
