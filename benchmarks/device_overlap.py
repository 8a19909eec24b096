"""Measures how well batches overlap on a device: upload of one, computing of another, download.

The device is simulated by timed sleeps on threads, one for each stage, as a real asynchronous
device behaves; the batcher and its threads are those of the server. "efficiency" is the throughput
over that of the slowest stage alone, measured before and after; with one batch at a time it is
the stage's part of the sum.

Usage: python benchmarks/device_overlap.py [--batches N] [--output FILE]
"""

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from gradcam_server.engine.batcher import Batcher

BATCH_SIZE = 32
STAGES_MS = ((4, 20, 2), (10, 20, 10), (20, 20, 20), (20, 8, 4))


class TimedDevice:
    """A runner whose batches sleep in three stages, each on a thread of its own."""

    background = has_streams = False
    device_count = 1
    max_batch_size = BATCH_SIZE

    def __init__(self, stages_s: Sequence[float], depth: int) -> None:
        self._stages_s, self.depth = stages_s, depth
        self.min_s = sum(stages_s)
        self._stages = [ThreadPoolExecutor(1) for _ in stages_s]

    def plan(self, waiting: int, _busy: float = 1.0) -> tuple[int, int]:
        """Returns how many to take, and the batch size."""
        return min(waiting, BATCH_SIZE), BATCH_SIZE

    def expected_s(self, _padded_size: int) -> float:
        """Returns the time of a batch alone."""
        return self.min_s

    def ran(self, _padded_size: int, _device: int, _seconds: float) -> None:
        """Learns nothing."""

    def dispatch(
        self, items: Sequence[int], _padded_size: int, _device: int
    ) -> Callable[[], Sequence[int]]:
        """Starts the first stage; each stage starts the next."""
        done = Future[None]()

        def run(stage: int) -> None:
            time.sleep(self._stages_s[stage])
            if stage + 1 < len(self._stages):
                self._stages[stage + 1].submit(run, stage + 1)
            else:
                done.set_result(None)

        self._stages[0].submit(run, 0)

        def wait() -> Sequence[int]:
            done.result()
            return items

        return wait


async def throughput(device: TimedDevice, batches: int) -> float:
    """Returns batches per second while two full batches always wait."""
    batcher, items = Batcher[int, int](), iter(range(batches * BATCH_SIZE))

    async def send_all() -> None:
        for item in items:
            await batcher.submit(device, item)

    began = perf_counter()
    await asyncio.gather(*(send_all() for _ in range((device.depth + 2) * BATCH_SIZE)))
    elapsed_s = perf_counter() - began
    await batcher.close()
    return batches / elapsed_s


async def latency_ms(device: TimedDevice, images: int = 15) -> float:
    """Returns the median of images that are alone."""
    batcher, found = Batcher[int, int](), []
    for item in range(images):
        began = perf_counter()
        await batcher.submit(device, item)
        found.append((perf_counter() - began) * 1e3)
    await batcher.close()
    return float(np.median(found))


def stage_per_s(stage_s: float, batches: int) -> float:
    """Returns how many batches per second the slowest stage takes alone."""
    began = perf_counter()
    for _ in range(batches):
        time.sleep(stage_s)
    return batches / (perf_counter() - began)


def measure(stages_ms: Sequence[float], depth: int, batches: int) -> dict[str, Any]:
    """Measures a device; filling and draining the device count, too."""
    stages_s = [stage / 1e3 for stage in stages_ms]
    before = stage_per_s(max(stages_s), batches // 2)
    per_s = asyncio.run(throughput(TimedDevice(stages_s, depth), batches))
    alone = (before + stage_per_s(max(stages_s), batches // 2)) / 2
    return {
        "stages_ms": list(stages_ms),
        "depth": depth,
        "batches_per_s": round(per_s, 2),
        "slowest_stage_per_s": round(alone, 2),
        "efficiency": round(per_s / alone, 3),
        "latency_alone_ms": round(asyncio.run(latency_ms(TimedDevice(stages_s, depth))), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = []
    for stages_ms in STAGES_MS:
        for depth in (1, 2, 3, 4):
            results.append(measure(stages_ms, depth, arguments.batches))
            print(results[-1], flush=True)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "batches": arguments.batches,
        "batch_size": BATCH_SIZE,
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
