"""The costs of batches follow the device, whatever was measured before."""

import math
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
    _, best = plan_batch(40, costs.cost_s)
    assert best == plan_batch(40, true_s)[1]
    assert run(costs, true_s.__getitem__, 50).count(best) >= 38


def test_noise_and_stalls_hardly_matter() -> None:
    """Also if the first batch of a size meets a stall: a size that pays is not given up."""
    stalled = {4, 8, 16}
    cost = noisy(STEEP)

    def seconds_of(size: int) -> float:
        slowness = 20.0 if size in stalled else 1.0
        stalled.discard(size)
        return slowness * cost(size)

    costs = BatchCosts({size: 3 * size * STEEP[1] for size in STEEP}, guessed={2, 4, 8, 16})
    run(costs, seconds_of, 100)
    assert run(costs, seconds_of, 100).count(16) > 90


@pytest.mark.parametrize("slowness", [2.0, 0.5])
@pytest.mark.parametrize("waiting", [1, 40])
def test_costs_follow_a_neighbour_that_comes_and_goes(slowness: float, waiting: int) -> None:
    """Of all sizes, those too that do not run meanwhile."""
    costs = BatchCosts(MIXED, guessed={2, 4, 8, 16})
    run(costs, MIXED.__getitem__, 100)
    for factor in (slowness, 1.0):
        now_s = {size: factor * took for size, took in MIXED.items()}
        run(costs, now_s.__getitem__, 100, waiting)
        assert costs.cost_s == pytest.approx(now_s, rel=0.1)


def test_a_size_is_tried_when_there_are_enough_images() -> None:
    """Full, in turns, and ever more rarely."""
    dear = {size: size**2 for size in (1, 2, 4, 8)}
    costs = BatchCosts(dear, guessed={2, 4, 8})
    assert run(costs, dear.__getitem__, 6, waiting=3) == [1, 2, 1, 1, 1, 1]
    assert run(costs, dear.__getitem__, 6, waiting=20)[:2] == [4, 8]
    sizes = run(costs, dear.__getitem__, 1000, waiting=20)
    for size in (2, 4, 8):
        assert 4 <= sizes.count(size) <= 10
        assert size in sizes[300:]


@pytest.mark.parametrize("true_s", [FLAT, STEEP], ids=["flat", "steep"])
@pytest.mark.parametrize("seed", range(8))
def test_load_that_comes_and_goes_while_sizes_are_tried_is_overcome(
    true_s: dict[int, float], seed: int
) -> None:
    """Each phase slows a few batches down; the batches are soon about as good as the best."""
    chance, left, slowness = random.Random(seed), 0, 1.0

    def seconds_of(size: int) -> float:
        nonlocal left, slowness
        if not left:
            left, slowness = chance.randint(2, 12), chance.choice([1.0, 1.5, 4.0])
        left -= 1
        return slowness * true_s[size]

    costs = BatchCosts({size: 2 * size * true_s[1] for size in true_s}, guessed={2, 4, 8, 16})
    run(costs, seconds_of, 300)
    sizes = run(costs, seconds_of, 300)
    item_s = sum(true_s[size] for size in sizes) / sum(sizes)
    assert item_s < 1.15 * min(took / size for size, took in true_s.items())


# A stream of ResNet50, and of a network for which batches save nothing.
STREAM = {1: 0.0645, 2: 0.1146, 4: 0.207, 8: 0.406, 16: 0.9}


def shared_machine(true_s: Mapping[int, float], chance: random.Random) -> Cost:
    """The speed of a machine that others use: it changes by a quarter within about a second.

    And there are stalls, which most short runs escape and hardly any long run.
    """
    slowness = 0.0

    def seconds_of(size: int) -> float:
        nonlocal slowness
        kept = math.exp(-true_s[size])
        slowness = kept * slowness + chance.gauss(0, math.sqrt(1 - kept**2))
        stall = chance.expovariate(4.0) if chance.random() < min(2 * true_s[size], 0.6) else 0.0
        return true_s[size] * math.exp(0.25 * max(slowness, -0.7) + chance.gauss(0, 0.05) + stall)

    return seconds_of


@pytest.mark.parametrize("true_s", [STREAM, FLAT], ids=["stream", "flat"])
@pytest.mark.parametrize("seed", range(6))
def test_sizes_that_differ_by_a_few_percent_are_told_apart(
    true_s: dict[int, float], seed: int
) -> None:
    """On a machine whose speed changes by more than that, and after a wrong measurement."""
    chance = random.Random(seed)
    start_s = {size: took * chance.uniform(0.8, 1.25) for size, took in true_s.items()}
    costs, seconds_of = BatchCosts(start_s, learns=True), shared_machine(true_s, chance)
    run(costs, seconds_of, 200, waiting=7)
    sizes = run(costs, seconds_of, 400, waiting=7)
    item_s = sum(true_s[size] for size in sizes) / sum(sizes)
    assert item_s < 1.03 * min(true_s[size] / size for size in (1, 2, 4))


def test_a_size_that_runs_all_day_says_nothing_about_the_others() -> None:
    """Single images, of whose times the median is less than the mean, do not come to seem cheap."""
    costs, seconds_of = BatchCosts(STREAM, learns=True), shared_machine(STREAM, random.Random(3))
    run(costs, seconds_of, 5000, waiting=1)
    assert costs.cost_s[1] / costs.cost_s[4] == pytest.approx(STREAM[1] / STREAM[4], rel=0.1)


def test_trials_become_rare() -> None:
    """Of sizes that cost a little more than the best; those of much more are hardly tried."""
    true_s = {1: 1.0, 2: 1.8, 4: 3.4, 8: 13.0}
    costs = BatchCosts(true_s, learns=True)
    first, _, last = (run(costs, true_s.__getitem__, 300) for _ in range(3))
    assert first.count(4) > 260
    assert first.count(2) > 2 * last.count(2) > 0
    assert first.count(8) + last.count(8) < 8


def test_costs_that_were_measured_here_are_kept() -> None:
    """Several runs of each size, in turns, know enough where batches pay much or not at all."""
    costs = BatchCosts(FLAT)
    run(costs, lambda size: 3.0 / size, 100)
    assert costs.cost_s == FLAT


def test_sizes_that_never_ran_are_scaled_with_the_others() -> None:
    """A device that is slower than when the first size was timed is slower for all sizes."""
    costs = BatchCosts(FLAT, guessed={2, 4, 8, 16})
    run(costs, lambda size: 3 * FLAT[size], 50, waiting=1)
    assert costs.cost_s[1] == pytest.approx(3 * FLAT[1], rel=0.01)
    for size in (2, 4, 8, 16):
        assert 1.8 * FLAT[size] < costs.cost_s[size] < 3.1 * FLAT[size]


@pytest.mark.parametrize("factor", [0.4, 2.5])
@pytest.mark.parametrize("waiting", [5, 40])
def test_a_disturbed_measurement_at_the_start_is_corrected(factor: float, waiting: int) -> None:
    """The one size that is timed at the start, and by which the others are scaled."""
    start_s = {size: factor * took if size == 1 else took for size, took in FLAT.items()}
    costs = BatchCosts(start_s, guessed={2, 4, 8, 16})
    run(costs, FLAT.__getitem__, 300, waiting)
    assert costs.cost_s[1] / costs.cost_s[2] == pytest.approx(0.5, rel=0.05)
