"""Checks that the server's memory, file descriptors and threads do not grow at saturation.

Medians of the last quarter of the time after warming up are compared with those of the first
quarter. The same is done for a server that leaks 20 kB per request on purpose: if that leak is not
caught, the first verdict is worthless.

Usage: PYTHONPATH=tests python benchmarks/soak.py [--minutes N] [--output FILE]
"""

import argparse
import itertools
import json
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
from numpy.typing import NDArray

from gradcam_client import (
    Client,
    GradCamError,
    GrayPng,
    OverlayJpeg,
    Raw,
    RetryPolicy,
)
from support.server import RunningServer

IMAGES = Path(__file__).parents[1] / "examples" / "images"
SERVER = ("--model", "efficientnet-lite0", "--compiler", "tensorflow", "--batch-sizes", "1,4")
MAX_GROWTH = 0.02
WARM_UP_SHARE = 0.25
UNARY_CLIENTS = 6
STREAMS = 2
CONTROL_MINUTES = 1.5
_PARTS = ("front end", "engine")


class Load:
    """Clients that keep a server busy, by unary calls and streams: valid, invalid, timed out."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self.answered = 0
        self._threads = [
            *(threading.Thread(target=self._unary, args=(n,)) for n in range(UNARY_CLIENTS)),
            *(threading.Thread(target=self._stream, args=(n,)) for n in range(STREAMS)),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stops sending, and waits for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _images(self) -> Iterator[Any]:
        files = [path.read_bytes() for path in sorted(IMAGES.glob("*.jpg"))]
        noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
        for image in itertools.cycle([*files, noise, files[0][:5000], b"no image"]):
            if self._stop.is_set():
                return
            yield image

    def _unary(self, number: int) -> None:
        heatmaps = ([Raw()], [OverlayJpeg()], [GrayPng(), Raw()])[number % 3]
        with Client(self._address, retry=RetryPolicy(max_attempts=1)) as client:
            for count, image in enumerate(self._images()):
                timeout_s = 0.02 if count % 20 == number else 60
                with suppress(GradCamError):  # some requests fail on purpose
                    client.explain(
                        image, timeout_s=timeout_s, heatmaps=heatmaps, top_k=1 + count % 3
                    )
                self.answered += 1

    def _stream(self, number: int) -> None:
        with Client(self._address) as client:
            for _ in client.explain_stream(self._images(), priority=1 + number, max_in_flight=16):
                self.answered += 1


def anonymous(pid: int) -> int:
    """Returns the anonymous memory of a process; mapped files depend on other processes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    return 1024 * sum(
        int(found) for found in re.findall(r"^(?:Anonymous|Swap): *(\d+)", text, re.M)
    )


def sample(server: RunningServer) -> list[int]:
    """Returns anonymous and resident memory, descriptors and threads of both processes."""
    front_end = psutil.Process(server.pid)
    (engine,) = front_end.children()
    found = []
    for process in (front_end, engine):
        resident = process.memory_info().rss
        found += [anonymous(process.pid), resident, process.num_fds(), process.num_threads()]
    return found


def judge(samples: NDArray[np.int64]) -> dict[str, Any]:
    """Compares the last quarter of the time with the first."""
    quarter = max(len(samples) // 4, 1)
    first, last = samples[:quarter], samples[-quarter:]
    report: dict[str, Any] = {}
    for number, part in enumerate(_PARTS):
        columns = slice(4 * number, 4 * number + 4)
        before, after = np.median(first[:, columns], axis=0), np.median(last[:, columns], axis=0)
        report[part] = {
            "anonymous_mib": [round(float(medians[0]) / 2**20, 1) for medians in (before, after)],
            "resident_mib": [round(float(medians[1]) / 2**20, 1) for medians in (before, after)],
            "growth": round(float(after[0] / before[0] - 1), 4),
            "anonymous_mib_each_10_s": (samples[::10, columns][:, 0] >> 20).tolist(),
            "max_file_descriptors": [int(rows[:, columns][:, 2].max()) for rows in (first, last)],
            "max_threads": [int(rows[:, columns][:, 3].max()) for rows in (first, last)],
        }
    report["flat"] = all(
        report[part]["growth"] < MAX_GROWTH
        and report[part]["max_file_descriptors"][1] <= report[part]["max_file_descriptors"][0]
        and report[part]["max_threads"][1] <= report[part]["max_threads"][0]
        for part in _PARTS
    )
    return report


def soak(minutes: float) -> dict[str, Any]:
    """Keeps a server busy for some minutes; returns the verdict."""
    server = RunningServer(*SERVER)
    try:
        load = Load(server.wait_ready().address)
        try:
            started = time.monotonic()
            time.sleep(minutes * 60 * WARM_UP_SHARE)
            warm_s, warm = time.monotonic() - started, load.answered
            samples = []
            while time.monotonic() - started < minutes * 60:
                time.sleep(1)
                samples.append(sample(server))
                if len(samples) % 30 == 1:
                    uss = [round(samples[-1][column] / 2**20) for column in (0, 4)]
                    print(f"{time.monotonic() - started:4.0f} s: {uss} MiB", flush=True)
            requests = load.answered - warm
        finally:
            load.stop()
        assert "Traceback" not in server.text, server.text
    finally:
        server.kill()
    return {
        "minutes": minutes,
        "of_these_warming_up": round(warm_s / 60, 2),
        "requests_after_warming_up": requests,
        **judge(np.array(samples, np.int64)),
    }


@contextmanager
def leaking() -> Iterator[None]:
    """Servers that start in this context leak."""
    with tempfile.TemporaryDirectory() as folder:
        gradcam = Path(folder) / "gradcam"
        gradcam.write_text(f"#!{sys.executable}\nfrom support.leaky import run\nrun()\n", "utf-8")
        gradcam.chmod(0o700)
        with patch("support.server.GRADCAM", str(gradcam)):
            yield


def main() -> int:
    """Returns the exit status: 1 if the server grows, or the leak is not caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--control-minutes", type=float, default=CONTROL_MINUTES)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    verdict = soak(arguments.minutes)
    print(json.dumps(verdict, indent=2), flush=True)
    print("With a leak of 20 kB per request:")
    with leaking():
        control = soak(arguments.control_minutes)
    report = {
        "server": " ".join(SERVER),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, clients included",
        "malloc_arena_max": os.environ.get("MALLOC_ARENA_MAX", "glibc's default"),
        "server_as_it_is": verdict,
        "control_that_leaks": control,
    }
    print(json.dumps(report, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    caught = not control["flat"]
    print(f"flat: {verdict['flat']}; the leak was caught: {caught}")
    return 0 if verdict["flat"] and caught else 1


if __name__ == "__main__":
    sys.exit(main())
