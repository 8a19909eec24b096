"""The policy of batching on simulated devices, beside other policies and the best schedule."""

import random
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from batching import CPU, GPU, OURS, OVERLAPPING, SMALL, bursts, modulated, poisson, policies
from batching_optimum import min_mean_latency_s
from batching_simulation import Device, FixedDelay, Greedy, Server, Singles, closed_loop, replay

ODD = Device("odd sizes", {1: 1.0, 3: 1.3, 4: 2.5}, overhead_s=0.0)


def _mean(latencies: Sequence[float]) -> float:
    return float(np.mean(latencies))


def _best_of_all(arrivals: tuple[float, ...], device: Device) -> float:
    """Tries every schedule of consecutive batches."""

    @cache
    def total(done: int, free_at: float) -> float:
        if done == len(arrivals):
            return 0.0
        found = []
        for size in range(1, min(device.max_batch_size, len(arrivals) - done) + 1):
            end = max(free_at, arrivals[done + size - 1]) + device.cost_s[device.padded(size)]
            own = size * end - sum(arrivals[done : done + size])
            found.append(own + total(done + size, end))
        return min(found)

    return total(0, 0.0) / len(arrivals)


@pytest.mark.parametrize("device", [CPU, SMALL, ODD])
@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_is_the_best_of_all_schedules(device: Device, seed: int) -> None:
    """Dynamic programming leaves none out that could be better."""
    chance = random.Random(seed)
    arrivals = sorted(chance.uniform(0, 6 * device.min_s) for _ in range(9))
    expected = _best_of_all(tuple(arrivals), device)
    assert min_mean_latency_s(arrivals, device) == pytest.approx(expected)


@pytest.mark.parametrize("device", [CPU, SMALL, GPU, OVERLAPPING])
@pytest.mark.parametrize("seed", range(2))
def test_no_policy_is_better_than_the_optimum(device: Device, seed: int) -> None:
    """It is a lower bound for each, on devices that overlap batches as well."""
    arrivals = poisson(0.7 * device.max_per_s, 300, seed)
    best_s = min_mean_latency_s(arrivals, device)
    for make in policies(device).values():
        assert _mean(replay(make(), device, arrivals).latencies_s) >= best_s * (1 - 1e-9)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_by_one_the_simulation_agrees_with_queueing_theory(load: float) -> None:
    """The mean latency of random arrivals is that of an M/D/1 queue."""
    cost_s = CPU.cost_s[1]
    arrivals = poisson(load / cost_s, 40_000, 1)
    latencies = replay(Singles(CPU), CPU, arrivals).latencies_s
    expected_s = cost_s * (1 + load / (2 * (1 - load)))
    assert _mean(latencies) == pytest.approx(expected_s, rel=0.05)


@pytest.mark.parametrize(("since_free", "last"), [(False, 4.1), (True, 4.6)])
def test_a_fixed_delay_counts_from_the_arrival_or_from_the_free_device(
    since_free: bool, last: float
) -> None:
    """The delay of Triton is that of the oldest image, the delay of LitServe that of the worker."""
    device = Device("one size", {1: 1.0, 8: 1.0}, overhead_s=0.0)
    policy = FixedDelay(device, 0.5, since_free=since_free)
    arrivals = [0.0, 1.6, 2.2]
    latencies = replay(policy, device, arrivals).latencies_s
    ends = [when + latency for when, latency in zip(arrivals, latencies, strict=True)]
    assert ends == pytest.approx([1.5, 3.1, last])


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8, 0.9])
@pytest.mark.parametrize(("device", "images"), [(CPU, 1000), (SMALL, 1000), (GPU, 1000)])
def test_the_mean_latency_is_near_the_optimum(device: Device, images: int, load: float) -> None:
    """On devices where batches pay and where they do not, without knowing what will come."""
    found, best = 0.0, 0.0
    for seed in range(2):
        arrivals = poisson(load * device.max_per_s, images, seed)
        best += min_mean_latency_s(arrivals, device)
        found += _mean(replay(Server(device), device, arrivals).latencies_s)
    assert found <= 1.12 * best


@pytest.mark.parametrize("device", [CPU, SMALL, GPU, OVERLAPPING])
@pytest.mark.parametrize("load", [0.3, 0.6])
@pytest.mark.parametrize("kind", ["bursts", "modulated"])
def test_bursts_are_served_as_well_as_by_the_best_other_policy(
    device: Device, load: float, kind: str
) -> None:
    """Which policy is the best depends on the device; the server's needs no setting."""
    rate, size = load * device.max_per_s, 64 if device.max_batch_size > 8 else 16
    arrivals = bursts(size, rate, 1000, 3) if kind == "bursts" else modulated(rate, 1000, 3)
    means = {
        name: _mean(replay(make(), device, arrivals).latencies_s)
        for name, make in policies(device).items()
    }
    assert means.pop(OURS) <= 1.03 * min(means.values())


@pytest.mark.parametrize("device", [CPU, SMALL, GPU, OVERLAPPING])
@pytest.mark.parametrize("users", [1, 4, 16, 64])
def test_users_who_always_wait_get_the_full_rate(device: Device, users: int) -> None:
    """In a closed loop the rate decides alone, so batches are as large as pays."""
    ours = closed_loop(Server(device), device, users, 40 * users)
    for other in (Singles(device), Greedy(device)):
        assert ours.per_s >= 0.965 * closed_loop(other, device, users, 40 * users).per_s


@pytest.mark.parametrize("part", [0.99, 0.995, 1.0])
def test_nobody_waits_for_a_gain_within_the_noise(part: float) -> None:
    """A batch that measures 1 % cheaper for each image than one image is not used."""
    costs = {1: 0.0171, 8: part * 8 * 0.0171}
    device = Device("within the noise", costs, overhead_s=0.0)
    arrivals = bursts(8, 0.5 * device.max_per_s, 400, 0)
    run = replay(Server(device), device, arrivals)
    assert run.mean_batch == 1.0
