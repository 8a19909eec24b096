"""Medians, spreads and percentiles."""

import numpy as np
import pytest

from gradcam_server.bench.statistics import Spread, latency_ms


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    """The summary equals NumPy's quartiles, with the number of values."""
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(3, 2, 4, 5)


def test_ratios_are_of_pairs() -> None:
    """A slow round slows both of its measurements: the ratio stays."""
    assert Spread.of_ratios([2, 20], [1, 10]) == Spread(2, 2, 2, 2)
    with pytest.raises(ValueError, match="zip"):
        Spread.of_ratios([1, 2], [1])


def test_percentiles_are_told_only_if_the_sample_bears_them() -> None:
    """Ten samples must lie beyond a percentile: p99.9 needs ten thousand samples."""
    few = latency_ms(np.linspace(0, 1, 1000))
    assert few["p99"] == pytest.approx(990, abs=1)
    assert few["p99.9"] is None
    assert latency_ms(np.linspace(0, 1, 10_000))["p99.9"] == pytest.approx(999, abs=1)
    assert set(latency_ms([]).values()) == {None}
