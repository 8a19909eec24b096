"""Statistics of samples: medians, quartiles, and percentiles with enough samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
# A percentile needs at least that many samples above it to be more than chance.
MIN_BEYOND = 10


@dataclass(frozen=True)
class Spread:
    """A summary of repeated measurements of one quantity, in its unit.

    Attributes:
        median: The median.
        low: The lower quartile.
        high: The upper quartile.
        count: The number of measurements.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: ArrayLike) -> "Spread":
        """Summarises at least one value.

        Raises:
            ValueError: There are no values.
        """
        found = np.asarray(values, float)
        if not found.size:
            raise ValueError("there is nothing to summarise")
        low, median, high = np.percentile(found, [25, 50, 75])
        return cls(float(median), float(low), float(high), found.size)

    @classmethod
    def of_ratios(cls, values: Sequence[float], bases: Sequence[float]) -> "Spread":
        """Summarises the ratios of pairs of one round each: noise that affects both cancels.

        Raises:
            ValueError: There are none, or the numbers of values and bases differ.
        """
        pairs = zip(values, bases, strict=True)
        return cls.of([value / base for value, base in pairs])


def latency_ms(seconds: ArrayLike, min_beyond: int = MIN_BEYOND) -> dict[str, float | None]:
    """Returns percentiles, the mean and the maximum of latencies.

    Args:
        seconds: The latencies in seconds.
        min_beyond: The least number of samples above a percentile.

    Returns:
        Milliseconds by name. A percentile with fewer samples above it is None: the run was too
        short for it.
    """
    found = np.asarray(seconds, float) * 1e3
    if not found.size:
        return dict.fromkeys((*QUANTILES, "mean", "max"))
    percentiles = {
        name: float(np.quantile(found, q)) if found.size * (1 - q) >= min_beyond - 1e-9 else None
        for name, q in QUANTILES.items()
    }
    return {**percentiles, "mean": float(found.mean()), "max": float(found.max())}
