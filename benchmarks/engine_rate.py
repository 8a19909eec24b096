"""Measures how many images a second the engine's process takes in, with graphs that cost nothing.

    fillers (processes)  -- pixels by shared memory, messages -->  engine: messages, batcher
                         <-- answers --

The engine's process runs on one core, and the fillers, which are front ends without gRPC, on the
others. They send raw images of the model's input size, and keep so many in work. "images/s of a
core" is the inverse of the CPU time that the engine's process spends on an image.

Usage: PYTHONPATH=tests python benchmarks/engine_rate.py [--fillers N] [--at-once N] [--rounds N]
"""

import argparse
import asyncio
import json
import os
import platform
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem, GraphTarget, by_rank
from gradcam_server.domain.schedule import BatchReport, Urgency
from gradcam_server.engine.ipc import spawned
from gradcam_server.engine.ipc.client import EngineConnection
from gradcam_server.engine.ipc.messages import Heartbeat
from gradcam_server.engine.ipc.process import RemoteBackend
from support.instant import INPUT_SIZE

SECONDS = 1.0


class Counter:
    """Counts the images of batches."""

    def __init__(self) -> None:
        self.images = self.batches = 0

    def batch_ran(self, _model: str, batch: BatchReport) -> None:
        """Counts."""
        self.images += batch.size
        self.batches += 1

    def beat(self, pid: int, heartbeat: Heartbeat) -> None:
        """Does nothing."""

    def catalog_changed(self, pid: int) -> None:
        """Does nothing."""


async def fill(connection: int, shared_fd: int, at_once: int) -> None:
    """Keeps images in work until this process is killed."""
    engine = await EngineConnection.join(connection, shared_fd, 0.0)
    key = engine.catalog.warm[0]
    pixels = np.random.default_rng(0).integers(0, 256, (*INPUT_SIZE, 3), dtype=np.uint8)
    item = GraphItem(pixels, (GraphTarget(by_rank(0)),))
    urgency = Urgency(1, None, None, f"caller {os.getpid()}")

    async def send_all() -> None:
        while True:
            await engine.compute(key, item, None, urgency)

    await asyncio.gather(*(send_all() for _ in range(at_once)))


async def measure(
    counter: Counter, engine: psutil.Process, fillers: list[psutil.Process]
) -> dict[str, float]:
    """Returns the figures of one round."""

    def cpu_s(of: list[psutil.Process]) -> float:
        return sum(times.user + times.system for times in (one.cpu_times() for one in of))

    images, batches, began = counter.images, counter.batches, perf_counter()
    engine_s, fillers_s = cpu_s([engine]), cpu_s(fillers)
    await asyncio.sleep(SECONDS)
    images, elapsed_s = counter.images - images, perf_counter() - began
    return {
        "images_per_s": images / elapsed_s,
        "engine_cpu_us_per_image": (cpu_s([engine]) - engine_s) / images * 1e6,
        "engine_images_per_s_of_a_core": images / (cpu_s([engine]) - engine_s),
        "filler_cpu_us_per_image": (cpu_s(fillers) - fillers_s) / images * 1e6,
        "images_per_batch": images / (counter.batches - batches),
    }


async def run(filler_count: int, at_once: int, rounds: int) -> list[dict[str, float]]:
    """Starts the engine and the fillers, and measures."""
    spawned._MODULE = "free_engine"
    counter = Counter()
    engine = await RemoteBackend.start(ServeConfig(), counter)
    fillers = []
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(engine.pid, cores[:1])
    try:
        for _ in range(filler_count):
            connection, shared_fd = engine.let_in()
            descriptors = connection.fileno(), shared_fd
            command = [sys.executable, __file__, "--fill", *map(str, descriptors)]
            command += ["--at-once", str(at_once)]
            fillers.append(await asyncio.create_subprocess_exec(*command, pass_fds=descriptors))
            os.sched_setaffinity(fillers[-1].pid, cores[1:] or cores)
            connection.close()
            os.close(shared_fd)
        while not counter.images:  # noqa: ASYNC110 - until the fillers have started
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        processes = [psutil.Process(filler.pid) for filler in fillers]
        own = psutil.Process(engine.pid)
        return [await measure(counter, own, processes) for _ in range(rounds)]
    finally:
        for filler in fillers:
            filler.kill()
            await filler.wait()
        await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fillers", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=128, help="images in work, of each filler")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fill", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill:
        connection, shared_fd = arguments.fill
        asyncio.run(fill(connection, shared_fd, arguments.at_once))
        return
    folder = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    rounds = asyncio.run(run(arguments.fillers, arguments.at_once, arguments.rounds))
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "fillers": arguments.fillers,
        "at_once": arguments.at_once,
        "rounds": arguments.rounds,
        "results": {
            name: [
                round(float(x), 1)
                for x in np.percentile([one[name] for one in rounds], [25, 50, 75])
            ]
            for name in rounds[0]
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
