"""When to try again."""

import math
import random
from dataclasses import dataclass

from gradcam_client.errors import GradCamError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    The n-th failure is followed by a pause drawn evenly from 0 to
    ``min(max_backoff_s, initial_backoff_s * multiplier ** (n - 1))`` seconds. A
    pause that the server asks for comes on top: clients that were turned away
    together do not come back together.

    Attributes:
        max_attempts: Attempts in all; 1 never retries.
        initial_backoff_s: The longest first pause, in seconds.
        max_backoff_s: The longest of all pauses, in seconds.
        multiplier: The growth of the longest pause.

    Raises:
        ValueError: An argument that makes no sense.
    """

    max_attempts: int = 5
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if not 0 < self.initial_backoff_s <= self.max_backoff_s < math.inf:
            raise ValueError(
                "initial_backoff_s must be positive and at most max_backoff_s, "
                f"not {self.initial_backoff_s} and {self.max_backoff_s}"
            )
        if not 1 <= self.multiplier < math.inf:
            raise ValueError(f"multiplier must be at least 1, not {self.multiplier}")

    def backoff_s(self, failures: int) -> float:
        """Returns the longest pause after so many failures (at least 1), in seconds."""
        try:
            grown = self.initial_backoff_s * self.multiplier ** (failures - 1)
        except OverflowError:
            return self.max_backoff_s
        return min(self.max_backoff_s, grown)

    def pause_s(
        self,
        error: GradCamError,
        failures: int,
        remaining_s: float,
        rested_in_s: float = math.inf,
    ) -> float | None:
        """Decides whether to try again.

        Args:
            error: What the last attempt failed with.
            failures: Failed attempts so far, the last one included.
            remaining_s: Seconds to the deadline.
            rested_in_s: In how many seconds another server may be asked, which has not asked
                for the pause that this one asked for.

        Returns:
            The pause before the next attempt in seconds, or None: the error is final
            because it is not retryable, the attempts are used up, or the pause would
            outlast the deadline.
        """
        if not error.retryable or failures >= self.max_attempts:
            return None
        jitter_s = random.random() * self.backoff_s(failures)  # noqa: S311 - no secret
        pause_s = min(error.retry_after_s or 0.0, rested_in_s) + jitter_s
        return pause_s if pause_s < remaining_s else None
