"""The costs of batches follow the device, whatever was measured before."""

import random
from collections.abc import Callable, Mapping

import pytest

from gradcam_server.domain.batch_costs import BatchCosts
from gradcam_server.domain.batch_sizes import plan_batch

FLAT = {1: 0.028, 2: 0.056, 4: 0.112, 8: 0.224, 16: 0.448}
STEEP = {1: 0.004, 2: 0.0045, 4: 0.0055, 8: 0.008, 16: 0.013}
MIXED = {1: 0.010, 2: 0.015, 4: 0.025, 8: 0.050, 16: 0.110}

Cost = Callable[[int], float]


def run(costs: BatchCosts, seconds_of: Cost, batches: int, waiting: int = 40) -> list[int]:
    """Runs batches on a simulated device while so many images wait; returns their sizes."""
    sizes = []
    for _ in range(batches):
        taken, size = costs.plan(waiting)
        assert taken == min(waiting, size)
        costs.learn(size, seconds_of(size))
        sizes.append(size)
    return sizes


def noisy(true_s: Mapping[int, float], share: float = 0.02) -> Cost:
    chance = random.Random(7)
    return lambda size: true_s[size] * chance.lognormvariate(0, share)


@pytest.mark.parametrize("true_s", [FLAT, STEEP, MIXED], ids=["flat", "steep", "mixed"])
@pytest.mark.parametrize("factor", [3.0, 1 / 3])
@pytest.mark.parametrize("wrong", [{16}, {2, 4}, {2, 4, 8, 16}])
def test_a_manifest_that_lies_by_a_factor_of_3_is_corrected(
    true_s: dict[int, float], factor: float, wrong: set[int]
) -> None:
    """In either direction, and of any sizes but the one that is timed at the start."""
    start_s = {size: took * (factor if size in wrong else 1) for size, took in true_s.items()}
    costs = BatchCosts(start_s, guessed=set(true_s) - {1})
    run(costs, true_s.__getitem__, 30)
    _, best = plan_batch(40, true_s)
    assert set(run(costs, true_s.__getitem__, 20)) == {best}


def test_noise_and_stalls_hardly_matter() -> None:
    """Also if the first batch of a size meets a stall: a size that pays is not given up."""
    stalled = {4, 8, 16}
    cost = noisy(STEEP)

    def seconds_of(size: int) -> float:
        slowness = 20.0 if size in stalled else 1.0
        stalled.discard(size)
        return slowness * cost(size)

    costs = BatchCosts({size: 3 * size * STEEP[1] for size in STEEP}, guessed={2, 4, 8, 16})
    run(costs, seconds_of, 30)
    assert set(run(costs, seconds_of, 50)) == {16}


@pytest.mark.parametrize("slowness", [2.0, 0.5])
@pytest.mark.parametrize("waiting", [1, 40])
def test_costs_follow_a_neighbour_that_comes_and_goes(slowness: float, waiting: int) -> None:
    """Of all sizes, those too that do not run meanwhile."""
    costs = BatchCosts(MIXED, guessed={2, 4, 8, 16})
    run(costs, MIXED.__getitem__, 100)
    for factor in (slowness, 1.0):
        now_s = {size: factor * took for size, took in MIXED.items()}
        run(costs, now_s.__getitem__, 100, waiting)
        assert costs.cost_s == pytest.approx(now_s, rel=0.05)


def test_a_size_is_tried_when_there_are_enough_images() -> None:
    """A few times, each full; sizes that were measured here are not tried."""
    dear = {size: size**2 for size in (1, 2, 4, 8)}
    costs = BatchCosts(dear, guessed={4, 8})
    assert run(costs, dear.__getitem__, 5, waiting=3) == [1] * 5
    assert run(costs, dear.__getitem__, 5, waiting=6) == [4, 4, 4, 1, 1]
    assert run(costs, dear.__getitem__, 5, waiting=20) == [8, 8, 8, 1, 1]
    assert run(BatchCosts(dear), dear.__getitem__, 5) == [1] * 5


def test_sizes_that_never_ran_are_scaled_with_the_others() -> None:
    """A device that is slower than when the first size was timed is slower for all sizes."""
    costs = BatchCosts(FLAT, guessed={2, 4, 8, 16})
    run(costs, lambda size: 3 * FLAT[size], 50, waiting=1)
    assert costs.cost_s == pytest.approx({size: 3 * took for size, took in FLAT.items()}, rel=0.05)


def test_costs_without_a_measurement_can_be_learnt() -> None:
    """Zero seconds mean that nothing is known."""
    costs = BatchCosts({1: 0.0})
    assert costs.cost_s == {1: 0.0}
    run(costs, lambda _: 0.5, 100)
    assert costs.cost_s == pytest.approx({1: 0.5})
