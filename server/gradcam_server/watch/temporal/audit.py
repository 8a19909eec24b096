"""Estimates the error of reused answers from a random sample that is computed all the same.

What is estimated is the error of all frames that reuse decided on, audited or not. Audits change
neither the kept answer nor any later decision, so the errors are fixed before the coins are
thrown, each frame is in the sample with the same chance, and means over the sample are unbiased.
If an audited answer replaced the kept one, errors would end where they are found: the sample
would change what it measures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CONFIDENCE = 0.95
_STEPS = 50  # of bisection
# The prior of the mixture, Gamma(1/2, 1/2): narrow intervals from a few to thousands of audits.
_PRIOR = 0.5


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over the reused frames.

    Attributes:
        value: The mean over the audited frames; NaN if there are none.
        low: The lower end of the 95 % interval.
        high: Its upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class Audit:
    """Counts reused and audited frames; its size does not grow.

    Args:
        share: The chance with which a frame that could be reused is computed, 0 to 1.

    Attributes:
        reused: Frames that were reused.
        asked: Frames that were chosen for the audit.
        audited: Those of them whose answer has come.
        missed: Audited frames of which the reused answer has another best class.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.reused = 0
        self.asked = 0
        self.audited = 0
        self.missed = 0
        self._loss = 0.0

    def add(self, *, is_missed: bool, correlation: float) -> None:
        """Takes what the audit of a frame found; see ``map_correlation``."""
        self.audited += 1
        self.missed += is_missed
        self._loss += 1 - min(1.0, max(0.0, correlation))

    @property
    def missed_share(self) -> Estimate:
        """The share of frames with another best class, with its Clopper-Pearson interval.

        A sample without replacement varies less than the binomial distribution behind the
        interval (Hoeffding 1963), so that it covers the share in 95 % of runs or more.
        """
        if not self.audited:
            return Estimate(math.nan, 0.0, 1.0)
        return Estimate(
            self.missed / self.audited, *clopper_pearson(self.missed, self.audited, _CONFIDENCE)
        )

    @property
    def correlation(self) -> Estimate:
        """The mean correlation of reused maps with computed ones; negative ones count as 0.

        The interval is that of ``sum_bounds``, for the sum of 1 - correlation.
        """
        if not self.audited:
            return Estimate(math.nan, 0.0, 1.0)
        # Audits without an answer make the sample smaller; which ones fail has no say in errors.
        answered = self.audited / self.asked
        share = self._share * answered / (1 - self._share * (1 - answered))
        frames = self.reused + self.audited
        low, high = (bound / share for bound in sum_bounds(self._loss, _CONFIDENCE))
        # Of the audited frames the error is known.
        low, high = np.clip([low, high], self._loss, self._loss + self.reused)
        return Estimate(
            1 - self._loss / self.audited, float(1 - high / frames), float(1 - low / frames)
        )

    def report(self) -> str:
        """Returns the line that every run with reuse prints."""
        line = f"reused {self.reused} frames, audited {self.audited}"
        if self.asked > self.audited:
            line += f" ({self.asked - self.audited} audits had no answer)"
        if not self.audited:
            return f"{line}: the error of reuse is not known"
        return (
            f"{line}: best class missed in {self.missed_share}, "
            f"correlation of maps {self.correlation}; in brackets 95 % intervals"
        )


def map_correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Returns Pearson's correlation of two maps, -1 to 1.

    A map without variation correlates with another such map by 1, with any other one by 0; so do
    maps of different shapes, which two models made.
    """
    if one.shape != other.shape:
        return 0.0
    first, second = _standardized(one), _standardized(other)
    if first is None or second is None:
        return float(first is second)
    return float((first * second).sum())


def _standardized(values: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Returns values with mean 0 and norm 1; None if they vary by no more than rounding."""
    exact = values.astype(np.float64)
    centered = exact - exact.mean()
    norm = float(np.linalg.norm(centered))
    return centered / norm if norm > 1e-6 * float(np.linalg.norm(exact)) else None


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Returns the exact interval of a share (Clopper and Pearson 1934).

    Args:
        successes: 0 to ``trials``.
        trials: At least 1.
        confidence: 0 to 1.
    """
    return (
        _lower_limit(successes, trials, confidence) if successes else 0.0,
        1 - _lower_limit(trials - successes, trials, confidence) if successes < trials else 1.0,
    )


def sum_bounds(sampled_sum: float, confidence: float) -> tuple[float, float]:
    """Returns an interval for p times the sum of values in [0, 1], from a random sample of them.

    Each value x is in the sample with probability p, by a coin of its own. For every theta > 0,
    theta^S exp(-(theta - 1) V) has a mean of 1 or less, S being the sum over the sample and V p
    times the sum over all: theta^x <= 1 + x (theta - 1) <= exp(x (theta - 1)). Its mixture over
    theta ~ Gamma(1/2, 1/2) exceeds 1/alpha with a probability of at most alpha (Markov's
    inequality); the interval holds every V for which it does not. It is valid for samples of
    every size, and at any time (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021,
    "Time-uniform, nonparametric, nonasymptotic confidence sequences"). It is narrow where the
    values are small.

    Args:
        sampled_sum: S, of values from 0 to 1.
        confidence: 1 - alpha.

    Returns:
        The ends of the interval for V.
    """
    shape = _PRIOR + sampled_sum
    limit = -math.log(1 - confidence)

    def is_outside(expected: float) -> bool:
        mixture = (
            _PRIOR * math.log(_PRIOR)
            + math.lgamma(shape)
            - math.lgamma(_PRIOR)
            - shape * math.log(_PRIOR + expected)
            + expected
        )
        return mixture >= limit

    low = _crossing(lambda value: not is_outside(value), 0.0, sampled_sum)
    farthest = sampled_sum + 10 * (limit + 1) + 10 * math.sqrt(sampled_sum * (limit + 1))
    high = _crossing(is_outside, sampled_sum, farthest)
    return (low if is_outside(0.0) else 0.0), high


def _crossing(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Returns where a condition begins to hold, by bisection."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return (low + high) / 2


def _lower_limit(successes: int, trials: int, confidence: float) -> float:
    """Returns the share for which that many successes or more are half as likely as an error."""
    counts = np.arange(successes, trials + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    choices = factorials[trials] - factorials[counts] - factorials[trials - counts]

    def is_above(share: float) -> bool:
        logs = choices + counts * math.log(share) + (trials - counts) * math.log1p(-share)
        return float(np.exp(logs).sum()) > (1 - confidence) / 2

    return _crossing(is_above, 0.0, 1.0)
