"""Closed and open loops, with made-up servers."""

import re

import numpy as np
import pytest

from gradcam_server.bench.load import Closed, Generators, Open, Records, merge
from support.made_up import MadeUp


def test_an_open_loop_counts_the_wait_that_a_closed_one_hides() -> None:
    """At twice the server's capacity, an open loop measures the growing wait."""
    with Generators() as generators:
        closed = generators.run(MadeUp(0.02), Closed(1, 1.0))
        opened = generators.run(MadeUp(0.02), Open(100, 1.0))
    assert np.median(opened.latencies_s) > 5 * np.median(closed.latencies_s)
    assert opened.requests == opened.latencies_s.size
    assert opened.images_per_s == pytest.approx(closed.images_per_s, rel=0.5)


def test_generators_share_a_load() -> None:
    """Two generators share one load; every request is answered or has failed."""
    with Generators(2) as generators:
        records = generators.run(MadeUp(0.01, fails=5), Closed(3, 0.5), settle_s=0.1)
    assert len(records.cpu_shares) == 2
    assert records.seconds == pytest.approx(0.4)
    assert records.failures["ValueError"] > 0
    assert records.latencies_s.size + records.failures.total() == records.requests
    assert records.batches[2, 4] == records.latencies_s.size
    assert records.stages_us["compute_us"] == 7 * records.latencies_s.size


def test_arrival_times_are_random_and_repeatable() -> None:
    """A Poisson process: the rate is right, and gaps vary as much as their mean."""
    times = np.array(list(Open(1000, 10, seed=3).times()))
    assert times.size == pytest.approx(10_000, rel=0.05)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert list(Open(1000, 10, seed=3).times()) == times.tolist()
    shares = [Open(1000, 10).share(number, 2) for number in range(2)]
    assert shares[0].seed != shares[1].seed
    assert sum(share.rate for share in shares) == 1000


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (Records(1, cpu_shares=[0.3, 0.95]), "95%"),
        (Records(1, latencies_s=np.array([0.01]), lags_s=np.array([0.005])), "late"),
        (Records(1, latencies_s=np.array([0.01]), lags_s=np.array([0.0001])), "^$"),
    ],
)
def test_a_generator_that_is_too_slow_says_so(records: Records, says: str) -> None:
    """Its share of a core, or late requests, are reported."""
    assert re.search(says, merge([records], parallel=True).bottleneck)


@pytest.mark.parametrize("size", [1, 4, 8])
@pytest.mark.parametrize("phase_s", [0.001, 0.05, 0.159])
def test_throughput_does_not_depend_on_when_the_last_batch_ends(size: int, phase_s: float) -> None:
    """The answers of a batch come together; their mere number is wrong by up to a batch."""
    times = np.repeat(np.arange(phase_s, 4, 0.16), size)
    records = Records(4.0, answered=times.size, answered_at_s=100 + times)
    assert records.images_per_s == pytest.approx(size / 0.16, rel=1e-9)


def test_few_answers_are_counted() -> None:
    """A slope through a few answers, or through a part of the time, says less than their number."""
    few = Records(2.0, answered=6, answered_at_s=np.linspace(0, 1.9, 6))
    stalled = Records(2.0, answered=40, answered_at_s=np.linspace(0, 0.5, 40))
    assert (few.images_per_s, stalled.images_per_s) == (3.0, 20.0)


def test_generators_together_have_the_throughput_of_both() -> None:
    """Each generator's answers count in the slope."""
    parts = [Records(2.0, answered=40, answered_at_s=np.linspace(0, 1.95, 40)) for _ in range(2)]
    assert merge(parts, parallel=True).images_per_s == pytest.approx(40, rel=0.03)
