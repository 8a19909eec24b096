"""The memory that requests may need; all together keep to the documented sum."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client import GrayPng, ImageArray, OverlayPng, Raw, SmoothGrad, build_request
from gradcam_server.config.settings import ServeConfig
from gradcam_server.pipeline.budget import BYTES_PER_PIXEL, Need, max_held_bytes
from gradcam_server.telemetry.memory import available_bytes
from support.bounded_server import LIMITS
from support.unread import UnreadCalls

TESTS = Path(__file__).resolve().parents[3]
UNARY = "/gradcam.v1.ExplanationService/ExplainImage"
# Of docs/operations.md.
THREAD_BYTES_PER_PIXEL = 16
KEPT_BYTES = 64 << 20
ATTACK_S = 3.0
CALLS_AT_ONCE = 4
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))


def test_the_default_is_a_part_of_the_memory_and_enough_for_one_request() -> None:
    """Each of several front ends has its part; an explicit limit is taken as it is."""
    small = ServeConfig(max_message_bytes=1, max_image_pixels=1, max_answer_bytes=1)
    assert max_held_bytes(small) == available_bytes() // 4
    several = ServeConfig(frontends=4, max_message_bytes=1, max_image_pixels=1, max_answer_bytes=1)
    assert max_held_bytes(several) == available_bytes() // 4 // 4
    huge = ServeConfig(max_answer_bytes=1 << 50)
    worst = Need(huge.max_message_bytes, BYTES_PER_PIXEL * huge.max_image_pixels, 1 << 50)
    assert max_held_bytes(huge) == worst.total
    assert max_held_bytes(ServeConfig(max_held_bytes=123)) == 123


class Bounded:
    """``support.bounded_server`` as a process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.bounded_server"],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = f"127.0.0.1:{self._line()}"

    def report(self) -> dict[str, int]:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        report: dict[str, int] = json.loads(self._line())
        return report

    def is_empty_soon(self) -> bool:
        """Waits until no request holds anything."""
        deadline = time.monotonic() + 30
        while self.report()["held"] and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.report()["held"]

    def close(self) -> None:
        self._process.communicate(timeout=30)

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


@pytest.fixture
def bounded() -> Iterator[Bounded]:
    bounded = Bounded()
    yield bounded
    bounded.close()


def png(pixels: np.ndarray) -> bytes:
    encoded, data = cv2.imencode(".png", pixels)
    assert encoded
    return data.tobytes()


def worst_requests() -> dict[str, pb.ExplainImageRequest]:
    """Many pixels, many bytes, large answers and long waits: each at its limit."""
    side = 1414
    flat = png(np.zeros((side, side, 3), np.uint8))
    noise = png(np.random.default_rng(0).integers(0, 256, (1160, 1160, 3), np.uint8))
    assert len(noise) > 0.95 * LIMITS.max_message_bytes
    return {
        "array": build_request(flat, top_k=3, heatmaps=[ImageArray()]),
        "overlay": build_request(flat, top_k=4, heatmaps=[OverlayPng()]),
        "drawn many": build_request(noise, smooth=SmoothGrad(64), top_k=1, heatmaps=[GrayPng()]),
        "many": build_request(noise, smooth=SmoothGrad(64), top_k=5, heatmaps=[Raw()]),
    }


def test_the_worst_requests_keep_to_the_documented_sum(bounded: Bounded) -> None:
    """Unread answers, full streams and waiting passes, of many callers at once."""
    requests = worst_requests()
    with grpc.insecure_channel(bounded.address, OPTIONS) as channel:
        ask = pb_grpc.ExplanationServiceStub(channel).ExplainImage
        ask(requests["overlay"], timeout=30)
        before = bounded.report()
        unread = [
            UnreadCalls(bounded.address, UNARY, [requests[kind].SerializeToString()] * 8)
            for kind in ("array", "overlay") * 4
        ]
        over = threading.Event()
        askers = [
            threading.Thread(target=keep_asking, args=(bounded.address, request, over))
            for request in requests.values()
        ]
        for asker in askers:
            asker.start()
        busiest = 0
        deadline = time.monotonic() + ATTACK_S
        while time.monotonic() < deadline:
            report = bounded.report()
            assert report["held"] <= max_held_bytes(LIMITS)
            assert report["in_work"] or not report["held"]
            busiest = max(busiest, report["held"])
            time.sleep(0.05)
        over.set()
        for client in unread:
            client.leave()
        for asker in askers:
            asker.join()
        assert bounded.is_empty_soon()
        ask(requests["array"], timeout=30)
    # Read by gRPC, and in Python, before it is counted or refused; of a stream and calls.
    on_their_way = 2 * (1 + CALLS_AT_ONCE) * sum(one.ByteSize() for one in requests.values())
    allowed = (
        max_held_bytes(LIMITS)
        + LIMITS.worker_threads * THREAD_BYTES_PER_PIXEL * LIMITS.max_image_pixels
        + KEPT_BYTES
        + on_their_way
    )
    report = bounded.report()
    assert report["peak"] - before["resident"] < allowed
    assert busiest > max_held_bytes(LIMITS) / 2
    assert bounded.is_empty_soon()


def keep_asking(address: str, request: pb.ExplainImageRequest, over: threading.Event) -> None:
    """A caller of streams, and of calls side by side, which reads nothing until it is over."""

    def messages() -> Iterator[pb.StreamExplainImagesRequest]:
        while not over.is_set():
            yield pb.StreamExplainImagesRequest(request=request)

    with grpc.insecure_channel(address, OPTIONS) as channel:
        stub: Any = pb_grpc.ExplanationServiceStub(channel)
        stream = stub.StreamExplainImages(messages())
        calls: list[Any] = []
        while not over.wait(0.01):
            calls = [call for call in calls if not call.done()]
            if len(calls) < CALLS_AT_ONCE:
                calls.append(stub.ExplainImage.future(request, timeout=60))
        for call in (stream, *calls):
            with suppress(grpc.RpcError):
                call.cancel()
