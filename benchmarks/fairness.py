"""Measures the latency of interactive requests beside callers that send as much as they can.

    offline      one stream of the same images with a lower priority
    pixels       four callers that stream JPEGs of 50 megapixels, with the same priority
    progressive  the same with progressive JPEGs
    segments     the same with JPEGs of 31 MiB, nearly all of it comments
    messages     the same JPEGs, by eight unary calls at a time of each caller

Phases with and without these callers alternate, and each pair gives one ratio, so that noise of the
machine cancels. Interactive requests are due at random times with a constant mean rate, whatever
happens to earlier requests, and their latency counts from the due time.

Usage: PYTHONPATH=tests python benchmarks/fairness.py [--others CASE] [--rounds N] [--seconds S]
       [--rate R] [--output FILE]
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gradcam_client import Client, ImageExplanation, OverloadedError
from support.server import RunningServer

IMAGE = Path(__file__).parents[1] / "examples" / "images" / "cat.jpg"
SERVER = ("--model", "efficientnet-lite0", "--compiler", "tensorflow", "--batch-sizes", "1,4")
FLOOD_SIDE, FLOOD_FILE_BYTES, FLOOD_SEGMENTS = 7071, 31 * 2**20, 4000
SETTLE_S, DRAIN_S = 1.5, 5.0
STAGES = ("decode_us", "queue_us", "compute_us", "render_us")


def small_image() -> bytes:
    return IMAGE.read_bytes()


def many_pixels(*options: int) -> bytes:
    """Returns a JPEG of 50 megapixels."""
    pixels = cv2.imread(str(IMAGE))
    assert pixels is not None
    large = cv2.resize(pixels, (FLOOD_SIDE, FLOOD_SIDE))
    return cv2.imencode(".jpg", large, options)[1].tobytes()


def progressive() -> bytes:
    return many_pixels(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def many_segments() -> bytes:
    """Returns a JPEG of 31 MiB with the maximum number of segments, nearly all of them comments."""
    image = IMAGE.read_bytes()
    length = FLOOD_FILE_BYTES // FLOOD_SEGMENTS
    comment = b"\xff\xfe" + length.to_bytes(2, "big") + bytes(length - 2)
    return image[:2] + FLOOD_SEGMENTS * comment + image[2:]


@dataclass(frozen=True)
class Others:
    """The callers beside the interactive requests.

    Attributes:
        image: Makes the file that they send.
        count: Number of callers, each with its own connection.
        priority: The priority of their requests.
        max_in_flight: Concurrent requests of each caller.
        is_streamed: Whether they send on a stream, or by unary calls.
    """

    image: Callable[[], bytes]
    count: int = 4
    priority: int = 1
    max_in_flight: int = 8
    is_streamed: bool = True


CASES = {
    "offline": Others(small_image, count=1, priority=9, max_in_flight=48),
    "pixels": Others(many_pixels),
    "progressive": Others(progressive),
    "segments": Others(many_segments),
    "messages": Others(many_segments, is_streamed=False),
}


def send_all(address: str, case: str, on: Event, answered: Any, batch_us: Any) -> None:
    """Sends as fast as the server reads, while ``on`` is set."""
    # Real callers have their own machines: these processes must leave the CPUs to the server.
    os.nice(19)
    others = CASES[case]
    image = others.image()

    def count(answer: ImageExplanation) -> None:
        batch_us.value = answer.stats.compute_us
        with answered.get_lock():
            answered.value += 1

    def images() -> Iterator[bytes]:
        while True:
            on.wait()
            yield image

    def call(client: Client) -> None:
        for item in images():
            with suppress(OverloadedError):
                count(client.explain(item, priority=others.priority))

    with Client(address) as client:
        if not others.is_streamed:
            with ThreadPoolExecutor(others.max_in_flight) as pool:
                list(pool.map(call, [client] * others.max_in_flight))
        for outcome in client.explain_stream(
            images(), priority=others.priority, max_in_flight=others.max_in_flight
        ):
            count(outcome.unwrap())


def interactive(
    client: Client, pool: ThreadPoolExecutor, seconds: float, rate: float
) -> list[tuple[float, ImageExplanation]]:
    """Sends at random times; returns the latencies in milliseconds, and the answers."""
    image = IMAGE.read_bytes()
    chance = random.Random(0)  # noqa: S311 - arrival times

    def explain(due: float) -> tuple[float, ImageExplanation]:
        answer = client.explain(image)
        return (time.perf_counter() - due) * 1e3, answer

    futures = []
    due = time.perf_counter()
    end = due + seconds
    while (due := due + chance.expovariate(rate)) < end:
        time.sleep(max(due - time.perf_counter(), 0))
        futures.append(pool.submit(explain, due))
    return [future.result() for future in futures]


def summary(found: list[tuple[float, ImageExplanation]]) -> dict[str, Any]:
    """Returns percentiles of the latency, and the stages of the slowest 5 % of the requests."""
    latencies = np.array([latency for latency, _ in found])
    slow = [answer for latency, answer in found if latency >= np.percentile(latencies, 95)]
    percentiles = zip(("p50", "p95", "p99"), np.percentile(latencies, [50, 95, 99]), strict=True)
    return {
        "requests": len(found),
        "ms": {name: round(float(value), 1) for name, value in percentiles},
        "slowest_5_percent_ms": {
            stage: round(float(np.mean([getattr(answer.stats, stage) for answer in slow])) / 1e3, 1)
            for stage in STAGES
        },
    }


def measure(address: str, case: str, rounds: int, seconds: float, rate: float) -> dict[str, Any]:
    """Alternates phases with and without the other callers."""
    spawn = multiprocessing.get_context("spawn")
    on, answered, batch_us = spawn.Event(), spawn.Value("l", 0), spawn.Value("l", 0)
    others = [
        spawn.Process(target=send_all, args=(address, case, on, answered, batch_us), daemon=True)
        for _ in range(CASES[case].count)
    ]
    for other in others:
        other.start()
    phases: dict[bool, list[list[tuple[float, ImageExplanation]]]] = {False: [], True: []}
    throughput, batches = [], []
    with Client(address) as client, ThreadPoolExecutor(64) as pool:
        interactive(client, pool, 2, rate)
        for number in itertools.count():
            with_others = bool(number % 2)
            on.set() if with_others else on.clear()
            settle(answered, on)
            before, started = answered.value, time.perf_counter()
            found = interactive(client, pool, seconds, rate)
            phases[with_others].append(found)
            if with_others:
                throughput.append((answered.value - before) / (time.perf_counter() - started))
                batches.append(batch_us.value / 1e3)
            name = "with   " if with_others else "without"
            print(f"{name} the others: {json.dumps(summary(found))}", flush=True)
            if number == 2 * rounds - 1:
                break
    for other in others:
        other.kill()
        other.join()
    pairs = list(zip(phases[False], phases[True], strict=True))
    return {
        "without_others": summary(list(itertools.chain(*phases[False]))),
        "with_others": summary(list(itertools.chain(*phases[True]))),
        "ratio_quartiles": {name: _ratios(pairs, q) for name, q in (("p50", 50), ("p99", 99))},
        "images_per_s_of_others_median": round(float(np.median(throughput)), 1),
        "batch_ms_of_others_median": round(float(np.median(batches)), 1),
        "stats_of_one_answer": asdict(phases[True][-1][-1][1].stats),
    }


def settle(answered: Any, on: Event) -> None:
    """Waits until the other callers have started, or until their requests are answered."""
    seen = -1
    while seen != answered.value:
        seen = answered.value
        time.sleep(SETTLE_S if on.is_set() else DRAIN_S)
        if on.is_set():
            return


def _ratios(pairs: list[Any], percentile: int) -> list[float]:
    ratios = [
        np.percentile([latency for latency, _ in with_others], percentile)
        / np.percentile([latency for latency, _ in without], percentile)
        for without, with_others in pairs
    ]
    return [round(float(value), 2) for value in np.percentile(ratios, [25, 50, 75])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--others", choices=CASES, default="offline")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rate", type=float, default=6, help="interactive requests per second")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    server = RunningServer(*SERVER)
    try:
        results = measure(
            server.wait_ready().address,
            arguments.others,
            arguments.rounds,
            arguments.seconds,
            arguments.rate,
        )
    finally:
        server.kill()
    report = {
        "server": " ".join(SERVER),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, clients included",
        "others": arguments.others,
        "interactive_requests_per_s": arguments.rate,
        "rounds": arguments.rounds,
        "seconds_of_each_phase": arguments.seconds,
        **results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
