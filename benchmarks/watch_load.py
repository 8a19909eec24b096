"""Measures lag, shares and memory of gradcam watch with more frames than a device explains.

Synthetic cameras send frames to the watcher of this process, whose calls go by gRPC to another
process. There a device is simulated that explains one image after another, each in the same time,
and that refuses at once what would be late, as the server does. ``--server`` measures a real server
instead.

Usage: PYTHONPATH=tests python benchmarks/watch_load.py [--minutes N] [--output FILE]
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client import AsyncClient, Raw, RetryPolicy
from gradcam_server.watch.explaining import FrameExplainer
from gradcam_server.watch.frames import Frame, FrameResult, Status
from gradcam_server.watch.pacing import Pacer
from gradcam_server.watch.sources.slot import FrameSlot
from gradcam_server.watch.stream_state import FrameByFrame
from gradcam_server.watch.watcher import Watched, Watcher

SIZE = (360, 640)
SAMPLE_S = 1.0
# The pace, the connections and the allocator have settled.
START_S = 10.0
MAX_LAG_FRAMES = 2.0
MAX_SHARE_ERROR = 0.05
MAX_GROWTH = 0.02


class _Device(pb_grpc.ExplanationServiceServicer):
    def __init__(self, seconds: float) -> None:
        self._seconds, self._free_at = seconds, 0.0
        values = np.random.default_rng(0).random((7, 7), np.float32)
        raw = pb.Heatmap(
            format=pb.HEATMAP_FORMAT_RAW_FLOAT32, height_px=7, width_px=7, data=values.tobytes()
        )
        self._answer = pb.ExplainImageResponse(
            model="simulated",
            image_height_px=SIZE[0],
            image_width_px=SIZE[1],
            predictions=[pb.Prediction(class_index=281, class_name="tabby", probability=0.5)],
            explanations=[pb.Explanation(class_index=281, class_name="tabby", heatmaps=[raw])],
        )

    async def ExplainImage(  # noqa: N802 - the name in the proto
        self,
        request: pb.ExplainImageRequest,  # noqa: ARG002 - the signature of gRPC
        context: Any,
    ) -> pb.ExplainImageResponse:
        now = time.monotonic()
        done_at = max(now, self._free_at) + self._seconds
        if done_at - now > context.time_remaining():
            status = status_pb2.Status(code=8, message="the answer would come too late")
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(10)
            detail = any_pb2.Any()
            detail.Pack(retry)
            status.details.append(detail)
            await context.abort_with_status(rpc_status.to_status(status))
        self._free_at = done_at
        await asyncio.sleep(done_at - now)
        return self._answer


@contextmanager
def other_process(work: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Runs a function in a process, with a pipe as last argument; yields what it sends first."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(*arguments, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def serve_device(seconds: float, port: Connection) -> None:
    """Serves a device that takes ``seconds`` for each image; sends the port."""

    async def serve() -> None:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2**26)])
        add_service: Any = pb_grpc.add_ExplanationServiceServicer_to_server
        add_service(_Device(seconds), server)
        port.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


class Camera:
    """Makes frames at a steady rate."""

    is_live = True

    def __init__(self, name: str, fps: float) -> None:
        self.name, self._fps = name, fps
        self._is_closed = threading.Event()
        noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
        self._pictures = [np.roll(noise, 40 * number, 1) for number in range(16)]

    def frames(self) -> Iterator[Frame]:
        """Yields a frame at each tick, as new pixels, until ``close``."""
        began_at, number = time.monotonic(), 0
        while not self._is_closed.wait(max(0.0, began_at + number / self._fps - time.monotonic())):
            image = self._pictures[number % len(self._pictures)].copy()
            yield Frame(self.name, number, time.time(), time.monotonic(), image, True)
            number += 1

    def done(self, frame: Frame) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Ends ``frames``."""
        self._is_closed.set()


@dataclass
class Measured:
    """The counts after the start, and all lags: an output and the counts of the watcher."""

    at_risk = ""
    is_warm: bool = False
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    lags_s: dict[str, list[float]] = field(default_factory=dict)

    def count(self, source: str, what: str) -> None:
        """Counts, after the start."""
        if self.is_warm:
            of_source = self.counts.setdefault(source, {})
            of_source[what] = of_source.get(what, 0) + 1

    def read(self, source: str) -> None:
        """Counts a frame that was read."""
        self.count(source, "read")

    def shed(self, source: str) -> None:
        """Counts a frame that was replaced by a newer one."""
        self.count(source, "shed")

    def finished(self, result: FrameResult, *, audited: bool) -> None:
        """Counts a result."""
        self.count(result.frame.source, "audited" if audited else str(result.status))

    def write(self, result: FrameResult) -> None:
        """Keeps the lag."""
        if self.is_warm and result.status is Status.EXPLAINED:
            self.lags_s.setdefault(result.frame.source, []).append(result.lag_s)

    def close(self) -> None:
        """Does nothing."""


async def load(arguments: argparse.Namespace, address: str) -> dict[str, Any]:
    """Runs the cameras, and returns what was measured."""
    measured, pacer, process = Measured(), Pacer(), psutil.Process()
    samples: list[tuple[int, int, int]] = []
    async with AsyncClient(address, retry=RetryPolicy(max_attempts=1)) as client:
        await client.wait_ready() if arguments.server else None
        request = {"heatmaps": [Raw()]}
        explainer = FrameExplainer(
            client, request, max_lag_s=arguments.max_lag, on_pause=pacer.pause
        )
        watched = []
        for number in range(arguments.cameras):
            name = f"camera {number}"
            slot = FrameSlot(True, lambda frame: measured.shed(frame.source))
            watched.append(Watched(Camera(name, arguments.fps), slot, FrameByFrame()))
        watcher = Watcher(watched, explainer.explain, pacer, [measured], measured)
        running = asyncio.create_task(watcher.run())
        await asyncio.sleep(START_S)
        measured.is_warm = True
        end_at = time.monotonic() + arguments.minutes * 60
        while time.monotonic() < end_at and not running.done():
            await asyncio.sleep(SAMPLE_S)
            memory = process.memory_info().rss
            samples.append((memory, process.num_fds(), process.num_threads()))
            if len(samples) % 30 == 1:
                line = f"{memory / 2**20:.0f} MiB, gap {pacer.gap_s * 1e3:.1f} ms, "
                print(f"{len(samples):5} s: {line}{measured.counts}", file=sys.stderr, flush=True)
        measured.is_warm = False
        watcher.stop()
        await running
    return summary(arguments, measured, np.array(samples, np.int64))


def summary(
    arguments: argparse.Namespace, measured: Measured, samples: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """Returns shares, lags and growth.

    Args:
        arguments: The arguments of the command.
        measured: The counts and lags.
        samples: (seconds, 3): resident memory in bytes, file descriptors, threads.
    """
    offered = arguments.cameras * arguments.fps
    expected = 1 - min(1.0, arguments.capacity / offered)
    sources = {}
    for name, counts in measured.counts.items():
        lags = np.array(measured.lags_s[name]) * arguments.fps
        sources[name] = {
            **counts,
            "shed_share": round(counts.get("shed", 0) / counts["read"], 4),
            "lag_frames": {
                "mean": round(float(lags.mean()), 3),
                **{f"p{p}": round(float(np.percentile(lags, p)), 3) for p in (50, 99, 99.9)},
                "max": round(float(lags.max()), 3),
                "share_under_two": round(float((lags < MAX_LAG_FRAMES).mean()), 5),
            },
        }
    quarter = max(1, len(samples) // 4)
    first, last = (np.median(part, axis=0) for part in (samples[:quarter], samples[-quarter:]))
    growth = dict(
        zip(("memory", "descriptors", "threads"), (last / first - 1).round(4), strict=True)
    )
    return {
        "minutes": arguments.minutes,
        "cameras": arguments.cameras,
        "fps": arguments.fps,
        "device": arguments.server or f"simulated, {arguments.capacity:g} images/s",
        "expected_shed_share": None if arguments.server else round(expected, 4),
        "sources": sources,
        "memory_mib": round(float(last[0]) / 2**20, 1),
        "descriptors": int(last[1]),
        "threads": int(last[2]),
        "growth_last_quarter_over_first": {name: float(one) for name, one in growth.items()},
    }


def verdict(report: dict[str, Any]) -> dict[str, bool]:
    """Returns what held."""
    sources, expected = report["sources"].values(), report["expected_shed_share"]
    explained = [one["explained"] for one in sources]
    return {
        "lag_p99_under_two_frames": all(
            one["lag_frames"]["p99"] < MAX_LAG_FRAMES for one in sources
        ),
        "shed_share_as_calculated": expected is None
        or all(abs(one["shed_share"] - expected) <= MAX_SHARE_ERROR for one in sources),
        "equal_shares": max(explained) <= (1 + MAX_SHARE_ERROR) * min(explained),
        "flat": all(one <= MAX_GROWTH for one in report["growth_last_quarter_over_first"].values()),
    }


def main() -> int:
    """Returns the exit status: 1 if lag, shares or memory are not as they should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--fps", type=float, default=15)
    parser.add_argument("--capacity", type=float, default=20, help="images/s of the device")
    parser.add_argument("--max-lag", type=float, default=1, help="seconds")
    parser.add_argument("--server", help="HOST:PORT of a real server")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.server:
        report = asyncio.run(load(arguments, arguments.server))
    else:
        with other_process(serve_device, 1 / arguments.capacity) as port:
            report = asyncio.run(load(arguments, f"127.0.0.1:{port}"))
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, the device's process included",
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
