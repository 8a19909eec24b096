"""The policy of retries: exponential back-off with full jitter."""

import math
import random
from dataclasses import dataclass

from gradcam_client.errors import GradCamError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    After the n-th failure the pause is drawn uniformly from 0 to
    ``min(max_backoff_s, initial_backoff_s * multiplier ** (n - 1))`` seconds. A pause that the
    server asks for is added, so that clients that were refused together do not retry together.

    Attributes:
        max_attempts: Number of attempts in all; 1 never retries.
        initial_backoff_s: Upper bound of the first pause, in seconds.
        max_backoff_s: Upper bound of all pauses, in seconds.
        multiplier: Growth of the upper bound from one pause to the next.

    Raises:
        ValueError: An argument is out of range.
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
        """Returns the upper bound of the pause after a number (>= 1) of failures, in seconds."""
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
        available_in_s: float = math.inf,
    ) -> float | None:
        """Decides whether and when to retry.

        Args:
            error: The error of the last attempt.
            failures: Number of failed attempts, the last attempt included.
            remaining_s: Seconds until the deadline.
            available_in_s: Seconds until another server may be tried, to which the pause that
                this server asked for does not apply.

        Returns:
            The pause before the next attempt in seconds, or None if the error is final: it is not
            retryable, the attempts are used up, or the pause would exceed the deadline.
        """
        if not error.retryable or failures >= self.max_attempts:
            return None
        jitter_s = random.random() * self.backoff_s(failures)  # noqa: S311 - no secret
        pause_s = min(error.retry_after_s or 0.0, available_in_s) + jitter_s
        return pause_s if pause_s < remaining_s else None
