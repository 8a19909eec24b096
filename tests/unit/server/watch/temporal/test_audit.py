"""The estimates of the audit."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest  # type: ignore[import-untyped]

from gradcam_server.watch.temporal.audit import (
    Audit,
    clopper_pearson,
    map_correlation,
    sum_bounds,
)


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (7, 5000), (4999, 5000)]
)
def test_clopper_pearson_is_scipys(successes: int, trials: int) -> None:
    """The interval is that of an independent implementation."""
    expected = binomtest(successes, trials).proportion_ci(0.95, "exact")
    assert clopper_pearson(successes, trials, 0.95) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


@pytest.mark.parametrize("sampled", [0.0, 0.02, 1.0, 25.0, 3000.0])
def test_the_sum_lies_between_its_bounds(sampled: float) -> None:
    """The interval holds the estimate, ends at the limit of the mixture, and is narrow."""
    low, high = sum_bounds(sampled, 0.95)
    assert low <= sampled <= high
    assert high - low < 4.2 + 8 * math.sqrt(sampled)
    for end in (low, high):
        mixture = (
            0.5 * math.log(0.5)
            + math.lgamma(0.5 + sampled)
            - math.lgamma(0.5)
            - (0.5 + sampled) * math.log(0.5 + end)
            + end
        )
        assert end == 0 or mixture == pytest.approx(math.log(20), abs=1e-6)


def _runs(
    missed: NDArray[np.bool_], correlation: NDArray[np.float64], share: float, runs: int
) -> list[Audit]:
    audits = []
    for seed in range(runs):
        coins = np.random.default_rng(seed).random(len(missed)) < share
        audit = Audit(share)
        audit.asked, audit.reused = int(coins.sum()), int((~coins).sum())
        for number in np.flatnonzero(coins):
            audit.add(is_missed=bool(missed[number]), correlation=float(correlation[number]))
        audits.append(audit)
    return audits


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("kind", ["rare", "half", "streak", "drift", "none"])
def test_intervals_cover_the_true_error(kind: str, share: float) -> None:
    """In 95 % of runs and more the true errors lie inside, whatever their order and size."""
    count, random = 300, np.random.default_rng(1)
    missed = {
        "rare": random.random(count) < 0.01,
        "half": random.random(count) < 0.5,
        "streak": np.arange(count) > 270,
        "drift": random.random(count) < np.linspace(0, 0.6, count),
        "none": np.zeros(count, bool),
    }[kind]
    correlation = np.where(missed, random.uniform(-0.2, 0.5, count), 0.98)
    true_share, true_mean = missed.mean(), np.clip(correlation, 0, 1).mean()
    audits = _runs(missed, correlation, share, 200)
    shares = [one.missed_share for one in audits]
    means = [one.correlation for one in audits]
    assert np.mean([one.low <= true_share <= one.high for one in shares]) >= 0.95
    assert np.mean([one.low <= true_mean <= one.high for one in means]) >= 0.95
    # And they say something: with 90 audits less than half of the range.
    if share == 0.3:
        assert np.median([one.high - one.low for one in means]) < 0.5


def test_the_estimates_are_unbiased() -> None:
    """Their mean over many runs is the true error."""
    missed = np.arange(200) % 5 == 0
    correlation = np.where(missed, 0.2, 0.9)
    audits = _runs(missed, correlation, 0.2, 500)
    assert np.mean([one.missed_share.value for one in audits]) == pytest.approx(0.2, abs=0.01)
    assert np.mean([one.correlation.value for one in audits]) == pytest.approx(0.76, abs=0.01)


def test_all_frames_audited_leave_no_doubt_of_maps() -> None:
    """With a share of 1 the correlation is known."""
    audit = Audit(1.0)
    for correlation in (0.5, 1.0, 0.9):
        audit.asked += 1
        audit.add(is_missed=False, correlation=correlation)
    assert audit.correlation.low == pytest.approx(0.8)
    assert audit.correlation.high == pytest.approx(0.8)


def test_audits_without_answers_leave_the_estimate_unbiased() -> None:
    """If most audits fail, the interval still covers, and the report says so."""
    random, within = np.random.default_rng(2), []
    for _ in range(200):
        audit = Audit(0.5)
        audit.asked = int(random.binomial(1000, 0.5))
        audit.reused = 1000 - audit.asked
        for _ in range(random.binomial(audit.asked, 0.2)):
            audit.add(is_missed=False, correlation=0.7)
        within.append(audit.correlation.low <= 0.7 <= audit.correlation.high)
    assert np.mean(within) >= 0.95
    assert "audits had no answer" in audit.report()


def test_without_audits_nothing_is_known() -> None:
    """No audit gives the whole range, and a report that says so."""
    audit = Audit(0.05)
    audit.reused = 3
    for found in (audit.missed_share, audit.correlation):
        assert math.isnan(found.value)
        assert (found.low, found.high) == (0, 1)
    assert audit.report() == "reused 3 frames, audited 0: the error of reuse is not known"


def test_the_report_names_all_figures() -> None:
    """One line: reused and audited frames, classes missed, correlation, with intervals."""
    audit = Audit(0.1)
    audit.reused, audit.asked = 180, 20
    for number in range(20):
        audit.add(is_missed=number == 0, correlation=0.95)
    report = audit.report()
    assert report.startswith("reused 180 frames, audited 20: best class missed in 0.050 (0.001 to")
    assert "correlation of maps 0.950 (" in report


def test_correlation_of_maps() -> None:
    """It is NumPy's, and maps without variation or of another shape are no NaN."""
    random = np.random.default_rng(3)
    one, other = random.random((2, 7, 7)).astype(np.float32)
    assert map_correlation(one, other) == pytest.approx(
        np.corrcoef(one.ravel(), other.ravel())[0, 1]
    )
    flat = np.full((7, 7), 0.1, np.float32)
    assert map_correlation(flat, np.zeros_like(flat)) == 1
    assert map_correlation(flat, one) == 0
    assert map_correlation(one, other[:6]) == 0
