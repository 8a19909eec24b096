"""Runs ``gradcam watch`` on more frames than its device explains, and measures what grows.

The command runs as users run it, in a process of its own. It watches MJPEG streams over HTTP, and
writes videos and JSON lines. Its device is simulated, in another process, and explains a quarter of
the frames. Every ten seconds memory, file descriptors and threads of the command are read. After
the start, each has a slope over time with a 95 % interval. The interval is that of least squares
with the variance of Newey and West (1987), because neighbouring samples are alike; it is for
runs of ten minutes or more.

Usage: PYTHONPATH=tests:benchmarks python benchmarks/watch_endurance.py [--minutes N]
    [--output FILE]
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import psutil
from numpy.typing import NDArray

from support.mjpeg import MjpegCamera
from support.server import GRADCAM
from watch_load import SIZE, other_process, serve_device

SAMPLE_S = 10.0
WARM_UP_SHARE = 0.25
START_S, END_S = 60.0, 30.0
NORMAL_975 = 1.96
MAX_GROWTH = 0.02
MAX_STEP = 1.5  # one more thread or descriptor is no trend; a pool has filled
MAX_ON_THEIR_WAY = 4
"""Frames of a source that are neither written nor shed when it ends."""
SAMPLED = ("rss_bytes", "pss_bytes", "descriptors", "threads")
_COUNT = re.compile(r"([\d,]+) (read|explained|reused|shed|failed)")


@dataclass(frozen=True)
class Trend:
    """How a quantity changes over time.

    Attributes:
        median: Its median.
        slope_per_hour: Its slope.
        low: The lower end of the slope's 95 % interval.
        high: The upper end.
        growth: The slope times the measured time, as a share of the median.
        is_flat: Whether the interval holds 0, or the growth is small.
    """

    median: float
    slope_per_hour: float
    low: float
    high: float
    growth: float
    is_flat: bool


def trend(hours: NDArray[np.float64], values: NDArray[np.float64]) -> Trend:
    """Fits a line.

    Args:
        hours: The times of the samples, at equal distances: (samples,); at least 3.
        values: The samples.
    """
    count = len(hours)
    centered = hours - hours.mean()
    median = float(np.median(values))
    changes = values - median
    slope = float(centered @ changes / (centered @ centered))
    terms = centered * (changes - changes.mean() - slope * centered)
    variance = float(terms @ terms)
    lags = min(count - 1, int(4 * (count / 100) ** (2 / 9)))
    for lag in range(1, lags + 1):
        variance += 2 * (1 - lag / (lags + 1)) * float(terms[lag:] @ terms[:-lag])
    variance *= count / (count - 2)
    margin = NORMAL_975 * max(variance, 0.0) ** 0.5 / float(centered @ centered)
    grown = slope * float(hours[-1] - hours[0])
    is_flat = slope - margin <= 0 or grown <= max(MAX_GROWTH * median, MAX_STEP)
    return Trend(median, slope, slope - margin, slope + margin, grown / median, is_flat)


def _film(count: int, fps: float, ports: Connection) -> None:
    cameras = [MjpegCamera(fps, SIZE) for _ in range(count)]
    for camera in cameras:
        camera.start()
    ports.send([camera.port for camera in cameras])
    threading.Event().wait()


class WatchProcess:
    """The command, and what it has written.

    Attributes:
        process: The process.
        results: The number of JSON lines, by source and status.
        errors: The lines of stderr.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [GRADCAM, "watch", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.results: Counter[tuple[str, str]] = Counter()
        self.errors: list[str] = []
        assert self.process.stdout
        assert self.process.stderr
        self._threads = [
            threading.Thread(target=self._count, args=(self.process.stdout,)),
            threading.Thread(target=self.errors.extend, args=(self.process.stderr,)),
        ]
        for thread in self._threads:
            thread.start()

    def _count(self, lines: IO[str]) -> None:
        for line in lines:
            result = json.loads(line)
            self.results[result["source"], result["status"]] += 1

    def wait_for_results(self) -> None:
        """Waits for the first results.

        Raises:
            RuntimeError: There are none.
        """
        end_at = time.monotonic() + START_S
        while not self.results:
            if time.monotonic() > end_at or self.process.poll() is not None:
                raise RuntimeError(f"gradcam watch wrote no result: {''.join(self.errors)}")
            time.sleep(0.1)

    def sample(self) -> tuple[int, ...]:
        """Returns what ``SAMPLED`` names."""
        process = psutil.Process(self.process.pid)
        memory = process.memory_full_info()
        return memory.rss, memory.pss, process.num_fds(), process.num_threads()

    def end(self) -> int:
        """Ends the command as SIGTERM does, and returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(END_S)
        finally:
            self.process.kill()
            for thread in self._threads:
                thread.join()

    def counts(self, source: str) -> dict[str, int]:
        """Returns the counts of a source in the summary."""
        line = next(line for line in reversed(self.errors) if line.startswith(f"{source}: "))
        return {name: int(count.replace(",", "")) for count, name in _COUNT.findall(line)}


def frames_in(path: Path) -> int:
    """Returns the number of pictures in a video."""
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def endure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the command, and returns what was measured."""
    samples: list[tuple[float, ...]] = []
    with (
        other_process(_film, arguments.cameras, arguments.fps) as ports,
        other_process(serve_device, 1 / arguments.capacity) as device,
    ):
        cameras = {f"camera{place}": port for place, port in enumerate(ports)}
        urls = [f"{name}=http://127.0.0.1:{port}/" for name, port in cameras.items()]
        server = ("--server", f"127.0.0.1:{device}")
        watch = WatchProcess([*urls, *server, "--json", "-o", f"{folder}/"])
        try:
            watch.wait_for_results()
            began_at = time.monotonic()
            while (passed_s := time.monotonic() - began_at) < arguments.minutes * 60:
                samples.append((passed_s / 3600, *watch.sample()))
                print(f"{passed_s:6.0f} s: {samples[-1][1:]}", file=sys.stderr, flush=True)
                next_s = len(samples) * arguments.sample_s
                time.sleep(max(0.0, began_at + next_s - time.monotonic()))
            seconds = time.monotonic() - began_at
        finally:
            status = watch.end()
    warm = np.array(samples[int(WARM_UP_SHARE * len(samples)) :])
    sources = {
        name: {
            **watch.counts(name),
            "results": sum(count for (of, _), count in watch.results.items() if of == name),
            "pictures": frames_in(folder / f"{name}.mp4"),
            "video_bytes": (folder / f"{name}.mp4").stat().st_size,
        }
        for name in cameras
    }
    return {
        "minutes": seconds / 60,
        "cameras": arguments.cameras,
        "fps": arguments.fps,
        "device": f"simulated, {arguments.capacity:g} images/s",
        "exit_status": status,
        "sources": sources,
        "sample_s": arguments.sample_s,
        "warm_samples": len(warm),
        "trends": {
            name: asdict(trend(warm[:, 0], warm[:, place + 1]))
            for place, name in enumerate(SAMPLED)
        },
        "samples": [[round(hours * 3600, 1), *values] for hours, *values in samples],
    }


def verdict(report: dict[str, Any]) -> dict[str, bool]:
    """Returns what held."""
    sources = report["sources"].values()
    answered = [one["results"] for one in sources]
    return {
        **{f"{name}_flat": one["is_flat"] for name, one in report["trends"].items()},
        "ended_as_it_should": report["exit_status"] == 0,
        "each_frame_is_accounted_for": all(
            0 <= one["read"] - one["results"] - one.get("shed", 0) <= MAX_ON_THEIR_WAY
            for one in sources
        ),
        "each_result_is_in_the_video": all(one["results"] == one["pictures"] for one in sources),
        "equal_shares": max(answered) <= 1.05 * min(answered),
    }


def main() -> int:
    """Returns the exit status: 1 if something grew or was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--fps", type=float, default=60, help="of each camera (default 60)")
    parser.add_argument("--capacity", type=float, default=30, help="images/s of the device")
    parser.add_argument("--sample-s", type=float, default=SAMPLE_S, help="between samples")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = endure(arguments, Path(folder))
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, all processes included",
        **report,
        "holds": verdict(report),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")
    return 0 if all(report["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
