"""Measures the cost of the front end: the real service with an engine that answers at once.

    raw images   against a bare grpc.aio server that receives and sends the same bytes
    JPEGs        against the same server with OpenCV's decoder, on as many threads

The servers are processes that run during the whole run. One client, which handles only bytes, uses
them in turns: each round gives a ratio of rates, and a ratio of the servers' CPU times.

Usage: PYTHONPATH=tests python benchmarks/overhead.py [--rounds N] [--output FILE]
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import grpc
import numpy as np
import psutil
from rich.progress import track

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.config.settings import ServeConfig
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.telemetry.memory import share_heap
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.tracing import NO_TRACER
from gradcam_server.transport.calls import Calls
from gradcam_server.transport.gradcam_v1.convert import to_request, to_response
from gradcam_server.transport.gradcam_v1.service import SERVICE_NAME, ExplanationService
from gradcam_server.transport.lifecycle import Lifecycle
from gradcam_server.transport.security.access import Access, AccessInterceptor
from support.instant import InstantBackend

PHOTO = Path(__file__).resolve().parent.parent / "examples" / "images" / "cat.jpg"
SIDE = 224
SECONDS = 0.7
UNARY_AT_ONCE = 64
STREAMS, STREAM_AT_ONCE = 2, 32
THREADS = ServeConfig().worker_threads
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
UNARY = f"/{SERVICE_NAME}/ExplainImage"
STREAM = f"/{SERVICE_NAME}/StreamExplainImages"


def raw_request() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    image = pb.RawImage(data=pixels.tobytes(), height_px=SIDE, width_px=SIDE)
    return pb.ExplainImageRequest(raw_image=image).SerializeToString()


def jpegs() -> dict[str, bytes]:
    """Returns a small file, and a file of 2 megapixels with as much detail: tiles of the first."""
    small = PHOTO.read_bytes()
    pixels = cv2.imdecode(np.frombuffer(small, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    large = cv2.imencode(".jpg", np.tile(pixels, (4, 4, 1)), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return {"small jpeg": small, "large jpeg": large.tobytes()}


def jpeg_request(file: bytes) -> bytes:
    return pb.ExplainImageRequest(encoded_image=file).SerializeToString()


async def serve_real(server: grpc.aio.Server) -> None:
    """Adds the service of the server, with an engine that answers at once."""
    config, metrics, lifecycle = ServeConfig(), Metrics(), Lifecycle()
    service = ExplanationService(config, Calls(lifecycle, metrics, NO_TRACER))
    service.publish(Explainer(config, InstantBackend(), metrics))
    lifecycle.serve()
    service.add_to_server(server)


async def serve_bytes(
    server: grpc.aio.Server, work: Callable[[], Awaitable[object]] | None
) -> None:
    """Adds the same methods on bytes, with the answers of the real service.

    Args:
        server: The server.
        work: Work before each answer; None for none.
    """
    explainer = Explainer(ServeConfig(), InstantBackend(), Metrics())
    request = to_request(pb.ExplainImageRequest.FromString(raw_request()))
    answer = to_response(await explainer.explain(request), include_logits=False)
    unary_answer = answer.SerializeToString()
    stream_answer = pb.StreamExplainImagesResponse(response=answer).SerializeToString()

    async def unary(_: bytes, __: Any) -> bytes:
        if work is not None:
            await work()
        return unary_answer

    async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
        writing = asyncio.Lock()

        async def one(work: Callable[[], Awaitable[object]]) -> None:
            await work()
            async with writing:
                await context.write(stream_answer)

        async with asyncio.TaskGroup() as group:
            async for _ in requests:
                if work is None:
                    await context.write(stream_answer)
                else:
                    group.create_task(one(work))

    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                SERVICE_NAME,
                {
                    "ExplainImage": grpc.unary_unary_rpc_method_handler(unary),
                    "StreamExplainImages": grpc.stream_stream_rpc_method_handler(stream),
                },
            )
        ]
    )


def decode_on(threads: ThreadPoolExecutor, file: bytes) -> Callable[[], Awaitable[object]]:
    """Returns a function that decodes a file on a thread."""
    photo = np.frombuffer(file, np.uint8)

    def decode() -> Awaitable[object]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(threads, cv2.imdecode, photo, cv2.IMREAD_COLOR_RGB)

    return decode


async def serve(kind: str, pipe: Connection) -> None:
    """Serves until the process is killed; sends the port on ``pipe``."""
    share_heap()
    cv2.setNumThreads(1)
    access = AccessInterceptor(Access(ServeConfig()))
    server = grpc.aio.server(interceptors=(access,) if kind == "real" else (), options=OPTIONS)
    if kind == "real":
        await serve_real(server)
    elif kind == "echo":
        await serve_bytes(server, None)
    else:
        await serve_bytes(server, decode_on(ThreadPoolExecutor(THREADS), jpegs()[kind]))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await server.wait_for_termination()


def run_server(kind: str, pipe: Connection) -> None:
    asyncio.run(serve(kind, pipe))


@dataclass
class Server:
    """A server's process, and a connection to it."""

    process: psutil.Process
    channel: grpc.aio.Channel

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


async def send_unary(channel: grpc.aio.Channel, request: bytes, end: float) -> int:
    """Sends requests until ``end``, a time of ``perf_counter``; returns the number of answers."""
    call: Any = channel.unary_unary(UNARY)

    async def send_all() -> int:
        count = 0
        while perf_counter() < end:
            await call(request)
            count += 1
        return count

    return sum(await asyncio.gather(*(send_all() for _ in range(UNARY_AT_ONCE))))


async def send_streams(channel: grpc.aio.Channel, request: bytes, end: float) -> int:
    """Does the same as ``send_unary``, over streams."""
    item = pb.StreamExplainImagesRequest(
        request=pb.ExplainImageRequest.FromString(request)
    ).SerializeToString()

    async def send_all() -> int:
        call: Any = channel.stream_stream(STREAM)()
        count = 0
        for _ in range(STREAM_AT_ONCE):
            await call.write(item)
        while perf_counter() < end:
            await call.read()
            count += 1
            await call.write(item)
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            count += 1
        return count

    return sum(await asyncio.gather(*(send_all() for _ in range(STREAMS))))


SendRequests = Callable[[grpc.aio.Channel, bytes, float], Awaitable[int]]


async def measure(server: Server, send: SendRequests, request: bytes) -> tuple[float, float]:
    """Returns answers per second, and the server's CPU seconds per answer."""
    cpu_s, began = server.cpu_s(), perf_counter()
    count = await send(server.channel, request, began + SECONDS)
    return count / (perf_counter() - began), (server.cpu_s() - cpu_s) / count


async def compare(
    real: Server, base: Server, send: SendRequests, request: bytes, rounds: int
) -> dict[str, Any]:
    """Measures both servers in turns."""
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for number in track(range(rounds + 1)):
        pair = [(real, ours), (base, theirs)]
        for server, found in pair if number % 2 else reversed(pair):
            measured = await measure(server, send, request)
            if number:  # the first warms up
                found.append(measured)
    one, other = np.array(ours), np.array(theirs)
    return {
        "per_s_median": np.median(one[:, 0]).round().tolist(),
        "baseline_per_s_median": np.median(other[:, 0]).round().tolist(),
        "rate_ratio_quartiles": _quartiles(one[:, 0] / other[:, 0]),
        "cpu_us_median": np.median(one[:, 1] * 1e6).round().tolist(),
        "baseline_cpu_us_median": np.median(other[:, 1] * 1e6).round().tolist(),
        "cpu_ratio_quartiles": _quartiles(one[:, 1] / other[:, 1]),
    }


def _quartiles(ratios: Any) -> list[float]:
    return [round(float(value), 3) for value in np.percentile(ratios, [25, 50, 75])]


async def compare_all(ports: dict[str, tuple[int, int]], rounds: int) -> dict[str, Any]:
    servers = {
        kind: Server(
            psutil.Process(pid), grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
        )
        for kind, (pid, port) in ports.items()
    }
    results = {}
    requests = {name: jpeg_request(file) for name, file in jpegs().items()}
    for name, base, request in (
        ("raw", "echo", raw_request()),
        *((name, name, request) for name, request in requests.items()),
    ):
        for way, send in (("unary", send_unary), ("streams", send_streams)):
            pair = servers["real"], servers[base]
            results[f"{name}, {way}"] = await compare(*pair, send, request, rounds)
    for server in servers.values():
        await server.channel.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ports, processes = {}, []
    try:
        for kind in ("real", "echo", *jpegs()):
            ours, theirs = context.Pipe()
            process = context.Process(target=run_server, args=(kind, theirs), daemon=True)
            process.start()
            processes.append(process)
            assert process.pid
            ports[kind] = process.pid, int(ours.recv())
        results = asyncio.run(compare_all(ports, arguments.rounds))
    finally:
        for process in processes:
            process.kill()
    report = {
        "baselines": {
            "raw": "a grpc.aio server that receives and sends the same bytes",
            "jpegs": f"the same, and cv2.imdecode on {THREADS} threads",
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, clients included",
        "versions": {"grpc": grpc.__version__, "opencv": cv2.__version__},
        "rounds": arguments.rounds,
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
