"""Compares the server's policy of batching with others and with the best possible schedule.

Devices are simulated with costs that were measured on a CPU and on a GPU, under Poisson traffic,
bursts and closed loops; each policy gets the same arrivals. The server's policy is its own
``Scheduler``. The optimum knows all arrivals beforehand, so no policy can reach it; for closed
loops it is the bound by the highest throughput of the device.

Usage: python benchmarks/batching.py [--images N] [--seeds N] [--output FILE]
"""

import argparse
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from batching_optimum import min_mean_latency_s
from batching_simulation import (
    Device,
    FixedDelay,
    Greedy,
    Policy,
    Run,
    Server,
    Singles,
    closed_loop,
    replay,
)
from gradcam_server.bench.results import Machine, finish

OURS = "server"


def _ms(costs: Mapping[int, float]) -> dict[int, float]:
    return {size: milliseconds / 1e3 for size, milliseconds in costs.items()}


H100 = _ms({1: 1.86, 8: 1.9, 32: 2.2, 128: 4.6, 256: 8.4})
CPU = Device("CPU, ResNet50", _ms({1: 17.1, 2: 34, 4: 67.5, 8: 133.6}))
SMALL = Device("CPU, EfficientNet-Lite0", _ms({1: 5.0, 2: 8.6, 4: 15.6, 8: 30}))
GPU = Device("H100, ResNet50", H100)
OVERLAPPING = Device("H100, depth 3", H100, stages=(0.25, 0.6, 0.15), depth=3)
DEVICES = (CPU, SMALL, GPU, OVERLAPPING)


def poisson(per_s: float, count: int, seed: int) -> list[float]:
    """Returns the times of independent images."""
    chance = random.Random(seed)  # noqa: S311 - arrival times
    return list(itertools.accumulate(chance.expovariate(per_s) for _ in range(count)))


def bursts(size: int, per_s: float, count: int, seed: int) -> list[float]:
    """Returns the times of images that come so many at once."""
    return [when for when in poisson(per_s / size, count // size, seed) for _ in range(size)]


def modulated(per_s: float, count: int, seed: int) -> list[float]:
    """Returns the times of a Poisson process whose rate is three times the mean, or a fifth of it.

    It changes at random, after 14 to 36 images' time of the mean rate.
    """
    chance = random.Random(seed)  # noqa: S311 - arrival times
    rates, spans = (3 * per_s, per_s / 5), (50 * 2 / 7 / per_s, 50 * 5 / 7 / per_s)
    now, state, found = 0.0, 0, list[float]()
    until = chance.expovariate(1 / spans[0])
    while len(found) < count:
        # A Poisson process has no memory: at a change its next image is drawn anew.
        following = now + chance.expovariate(rates[state])
        if following < until:
            now = following
            found.append(now)
        else:
            now, state = until, 1 - state
            until = now + chance.expovariate(1 / spans[state])
    return found


def policies(device: Device) -> dict[str, Callable[[], Policy]]:
    """Returns what makes each policy. Delays are multiples of the time of one image."""
    found: dict[str, Callable[[], Policy]] = {
        OURS: partial(Server, device),
        "one by one": partial(Singles, device),
        "all that wait": partial(Greedy, device),
    }
    for delay in (0.5, 2.0):
        delay_s = delay * device.min_s
        found[f"Triton, delay {delay}"] = partial(FixedDelay, device, delay_s)
        found[f"LitServe, delay {delay}"] = partial(FixedDelay, device, delay_s, since_free=True)
    return found


@dataclass(frozen=True)
class OpenLoop:
    """Images that arrive whatever happens to others.

    Attributes:
        name: Its name in the report.
        load: The rate, as a part of the highest rate of the device.
        arrivals: Makes the times from the rate, the number of images and a seed.
    """

    name: str
    load: float
    arrivals: Callable[[float, int, int], list[float]]

    def run(self, device: Device, images: int, seeds: int) -> tuple[float, dict[str, list[Run]]]:
        """Returns the minimum of the mean latency in seconds, and each policy's runs."""
        times = [self.arrivals(self.load * device.max_per_s, images, n) for n in range(seeds)]
        best_s = float(np.mean([min_mean_latency_s(arrivals, device) for arrivals in times]))
        return best_s, {
            name: [replay(make(), device, arrivals) for arrivals in times]
            for name, make in policies(device).items()
        }


@dataclass(frozen=True)
class ClosedLoop:
    """Users who send their next image as soon as they have the answer to the last.

    Attributes:
        users: How many.
    """

    users: int

    @property
    def name(self) -> str:
        """Its name in the report."""
        return f"{self.users} users"

    def run(self, device: Device, images: int, seeds: int) -> tuple[float, dict[str, list[Run]]]:  # noqa: ARG002 - nothing is random
        """Returns a bound of the mean latency in seconds, and each policy's runs."""
        best_s = max(self.users / device.rate(self.users), min(device.cost_s.values()))
        images = max(images, 30 * self.users)
        return best_s, {
            name: [closed_loop(make(), device, self.users, images)]
            for name, make in policies(device).items()
        }


Traffic = OpenLoop | ClosedLoop


def traffics(device: Device) -> list[Traffic]:
    """Returns the traffic for a device."""
    is_large = device.max_batch_size > 8
    size, users = (64, (1, 16, 64, 512)) if is_large else (16, (1, 4, 16, 32))
    found: list[Traffic] = [
        OpenLoop(f"Poisson, load {load}", load, poisson) for load in (0.3, 0.5, 0.8, 0.9, 0.95)
    ]
    for load in (0.3, 0.6):
        name = f"bursts of {size}, load {load}"
        found.append(OpenLoop(name, load, lambda *given: bursts(size, *given)))
        found.append(OpenLoop(f"modulated, load {load}", load, modulated))
    return found + [ClosedLoop(count) for count in users]


def measure(device: Device, traffic: Traffic, images: int, seeds: int) -> dict[str, Any]:
    """Returns a row of the results."""
    best_s, runs = traffic.run(device, images, seeds)
    found = {name: _figures(of_policy) for name, of_policy in runs.items()}
    ours = found[OURS]
    others = [figures for name, figures in found.items() if name != OURS]
    best = {key: min(figures[key] for figures in others) for key in ("mean_ms", "p99_ms")}
    return {
        "device": device.name,
        "traffic": traffic.name,
        "optimum_mean_ms": round(best_s * 1e3, 3),
        "mean_by_optimum": {
            name: round(figures["mean_ms"] / 1e3 / best_s, 3) for name, figures in found.items()
        },
        "mean_by_best_other": round(ours["mean_ms"] / best["mean_ms"], 3),
        "p99_by_best_other": round(ours["p99_ms"] / best["p99_ms"], 3),
        "rate_by_best_other": round(ours["per_s"] / max(other["per_s"] for other in others), 3),
        "policies": found,
    }


def _figures(runs: Sequence[Run]) -> dict[str, float]:
    latencies_ms = np.concatenate([run.latencies_s for run in runs]) * 1e3
    return {
        "mean_ms": round(float(latencies_ms.mean()), 3),
        "p99_ms": round(float(np.percentile(latencies_ms, 99)), 3),
        "per_s": round(float(np.mean([run.per_s for run in runs])), 2),
        "mean_batch": round(float(np.mean([run.mean_batch for run in runs])), 2),
    }


def line(row: Mapping[str, Any]) -> str:
    """Returns a row of the table: means over the optimum, and the p99 over the best other's."""
    means = row["mean_by_optimum"]
    delayed = min(mean for name, mean in means.items() if "delay" in name)
    cells = (
        *(row["device"], row["traffic"], f"{row['optimum_mean_ms']:.1f}"),
        *(f"{means[name]:.2f}" for name in (OURS, "one by one", "all that wait")),
        *(f"{delayed:.2f}", f"{row['p99_by_best_other']:.2f}", f"{row['rate_by_best_other']:.2f}"),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    machine, rows = Machine.here(), []
    print(
        "| device | traffic | optimum, ms | server | one by one | all that wait | best delay "
        "| p99 | rate |\n" + "| --- " * 9 + "|"
    )
    for device in DEVICES:
        for traffic in traffics(device):
            rows.append(measure(device, traffic, arguments.images, arguments.seeds))
            print(line(rows[-1]), flush=True)
    settings = {
        "images": arguments.images,
        "seeds": arguments.seeds,
        "devices": {
            device.name: {
                "graph_ms": {size: cost * 1e3 for size, cost in device.graph_s.items()},
                "overhead_ms": device.overhead_s * 1e3,
                "stages": list(device.stages),
                "depth": device.depth,
            }
            for device in DEVICES
        },
    }
    notes = [
        "All devices are simulated; the stages of the device of depth 3 are assumed.",
        "The optimum knows all arrivals. For closed loops and depth 3 it is a lower bound.",
    ]
    if arguments.output:
        finish("batching", settings, rows, machine=machine, notes=notes).save(arguments.output)


if __name__ == "__main__":
    main()
