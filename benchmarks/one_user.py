"""Measures what one user waits, over the bare graph's time of one image and the time of an echo.

    server  one call after the other to ``gradcam serve``
    echo    the same to a bare grpc.aio server of the same bytes and the same answer
    bare    the graph alone, one image after the other

The three take turns, and each round gives one excess: (server - echo) / bare, of the medians. The
payload is raw pixels of the model's input size, or a JPEG, which the server must also decode.

Usage: PYTHONPATH=benchmarks python benchmarks/one_user.py [OPTIONS] -- SERVE OPTIONS
"""

import argparse
import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import Client
from gradcam_server.bench import results
from gradcam_server.bench.bare import BareGraph
from gradcam_server.bench.interleave import interleave
from gradcam_server.bench.load import Closed, Generators
from gradcam_server.bench.load_clients import Unary
from gradcam_server.bench.payload import request
from gradcam_server.bench.report import table
from gradcam_server.bench.running import gradcam_serve
from gradcam_server.bench.statistics import Spread
from gradcam_server.bench.worker import Worker
from gradcam_server.cli.connection import Connection
from gradcam_server.cli.progress import open_bar
from gradcam_server.cli.serve import read_arguments
from options import add_run_options

SERVICE = "gradcam.v1.ExplanationService"
PAYLOADS = ("raw", "jpeg")
SETTLE_S = 0.3


class Echo:
    """A bare grpc.aio server; made in a ``Worker``.

    Args:
        answer: What it answers.
    """

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._started, self._port = threading.Event(), 0
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._started.wait()

    def port(self) -> int:
        """Returns its port on 127.0.0.1."""
        return self._port

    async def _serve(self) -> None:
        async def explain(_: bytes, __: Any) -> bytes:
            return self._answer

        server = grpc.aio.server()
        methods: dict[str, Any] = {"ExplainImage": grpc.unary_unary_rpc_method_handler(explain)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
        self._port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._started.set()
        await server.wait_for_termination()


def first_answer(address: str, message: bytes) -> bytes:
    """Returns the bytes of an answer."""
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/ExplainImage")
        answer: bytes = call(message, timeout=30)
    assert pb.ExplainImageResponse.FromString(answer).explanations
    return answer


def subjects(
    stack: ExitStack, arguments: argparse.Namespace, bare: Worker
) -> dict[str, Callable[[], float]]:
    """Starts the servers; returns what measures the median seconds of a call, by name."""
    running = stack.enter_context(gradcam_serve(arguments.serve))
    generators = stack.enter_context(Generators())
    with Client(running.address) as client:
        info = client.get_model()
    size = info.input_height, info.input_width
    one = Closed(1, arguments.seconds)

    def median_s(address: str, message: bytes) -> float:
        found = generators.run(Unary(address, message, Connection()), one, SETTLE_S)
        return float(np.median(found.latencies_s))

    measured = {"bare": lambda: 1 / bare.call("images_per_s", 1, arguments.seconds)}
    for payload in PAYLOADS:
        message = request(payload, arguments.image, size)
        echo = stack.enter_context(Worker(Echo, first_answer(running.address, message)))
        echo_address = f"127.0.0.1:{echo.call('port')}"
        measured[f"server, {payload}"] = partial(median_s, running.address, message)
        measured[f"echo, {payload}"] = partial(median_s, echo_address, message)
    return measured


def row(payload: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """Summarises a payload: milliseconds, and the excess of each round."""
    bare, server, echo = found["bare"], found[f"server, {payload}"], found[f"echo, {payload}"]
    beside_echo = [of_server - of_echo for of_server, of_echo in zip(server, echo, strict=True)]
    return {
        "payload": payload,
        "server_ms": vars(Spread.of(np.multiply(server, 1e3))),
        "echo_ms": vars(Spread.of(np.multiply(echo, 1e3))),
        "bare_ms": vars(Spread.of(np.multiply(bare, 1e3))),
        "over_bare": vars(Spread.of_ratios(beside_echo, bare)),
    }


def spread(found: dict[str, float], digits: int) -> str:
    """Returns the median and the quartiles."""
    median, low, high = (f"{found[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_options(parser, seconds=2, rounds=8, output="one_user.json")
    arguments = parser.parse_args()
    machine, config = results.Machine.here(), read_arguments(arguments.serve)
    with ExitStack() as stack, open_bar() as bar:
        bare = stack.enter_context(Worker(BareGraph, config))
        measured = subjects(stack, arguments, bare)
        task = bar.add_task("", total=len(measured) * arguments.rounds)

        def on_turn(name: str) -> None:
            bar.update(task, description=name)
            bar.advance(task)

        found = interleave(measured, arguments.rounds, on_turn=on_turn)
    rows = [row(payload, found) for payload in PAYLOADS]
    settings = {
        "model": config.model[0],
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "image": arguments.image.name if arguments.image else "generated",
    }
    finished = results.finish("one_user", settings, rows, machine=machine, trial=arguments.trial)
    finished.save(arguments.output)
    names = {"server_ms": "server, ms", "echo_ms": "echo, ms", "bare_ms": "bare graph, ms"}
    headings = ["payload", *names.values(), "(server - echo) / bare graph"]
    cells = [
        [line["payload"], *(spread(line[name], 2) for name in names), spread(line["over_bare"], 3)]
        for line in rows
    ]
    print(table(headings, cells), arguments.output, sep="\n")


if __name__ == "__main__":
    main()
