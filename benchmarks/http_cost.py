"""Measures what HTTP costs beside gRPC: the same server, JPEG in, JSON or a message out.

Closed loops of users, each with a connection of its own, take turns over the two transports. Each
round gives one ratio of the throughputs. CPU time is that of the server's front end for an image.

Usage: PYTHONPATH=benchmarks python benchmarks/http_cost.py [OPTIONS] -- SERVE OPTIONS
"""

import argparse
import json
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import aiohttp

from gradcam_client import Client
from gradcam_server.bench import results
from gradcam_server.bench.interleave import interleave
from gradcam_server.bench.load import Closed, Generators, LoadClient, MakeLoadClient
from gradcam_server.bench.load_clients import Unary, WrongAnswerError
from gradcam_server.bench.payload import jpeg, request
from gradcam_server.bench.report import table
from gradcam_server.bench.running import RunningServer, cpu_by_part, gradcam_serve
from gradcam_server.bench.statistics import Spread
from gradcam_server.cli.connection import Connection
from gradcam_server.cli.progress import open_bar

SETTLE_S = 0.5


@dataclass(frozen=True)
class Http:
    """Makes clients that post a JPEG and read JSON.

    Attributes:
        url: The URL of the method.
        body: The JPEG.
    """

    url: str
    body: bytes

    def __call__(self) -> LoadClient:
        """Makes a client."""
        return _HttpClient(self)


class _HttpClient:
    def __init__(self, settings: Http) -> None:
        self._settings = settings

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"Content-Type": "image/jpeg"}
        )

    async def explain(self) -> None:
        async with self._session.post(self._settings.url, data=self._settings.body) as answer:
            found = json.loads(await answer.read())
        if answer.status != 200 or not found["explanations"][0]["heatmaps"][0]["data"]:
            raise WrongAnswerError(f"status {answer.status}")

    async def close(self) -> None:
        await self._session.close()


@dataclass(frozen=True)
class Turn:
    """One measurement: images per second, and the front end's CPU time in ms per image."""

    images_per_s: float
    front_end_ms: float


def measure(
    running: RunningServer, generators: Generators, load: Closed, client: MakeLoadClient
) -> Turn:
    """Runs a load.

    Raises:
        RuntimeError: A request failed.
    """
    before = cpu_by_part(running.pid)["front_end"]
    found = generators.run(client, load, SETTLE_S)
    used_s = cpu_by_part(running.pid)["front_end"] - before
    if found.failures:
        raise RuntimeError(f"requests failed: {dict(found.failures)}")
    return Turn(found.images_per_s, used_s / found.all_answered * 1e3)


def subjects(
    stack: ExitStack, arguments: argparse.Namespace
) -> tuple[str, dict[str, Callable[[], Turn]]]:
    """Starts the server; returns the model, and what measures each transport by name."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [*arguments.serve, "--http-port", str(port)]
    running = stack.enter_context(gradcam_serve(options))
    generators = stack.enter_context(Generators())
    with Client(running.address) as client:
        info = client.get_model()
    message = request("jpeg", arguments.image, (info.input_height, info.input_width))
    url = f"http://127.0.0.1:{port}/v1/models/{info.name}:explain"
    load = Closed(arguments.users, arguments.seconds)
    run = partial(measure, running, generators, load)
    return info.name, {
        "http": lambda: run(Http(url, jpeg(arguments.image))),
        "grpc": lambda: run(Unary(running.address, message, Connection())),
    }


def row(name: str, found: dict[str, list[Turn]]) -> dict[str, Any]:
    """Summarises a transport: images per second, their ratio to gRPC's, and CPU time."""
    rates = {key: [turn.images_per_s for turn in turns] for key, turns in found.items()}
    return {
        "transport": name,
        "images_per_s": vars(Spread.of(rates[name])),
        "of_grpc": vars(Spread.of_ratios(rates[name], rates["grpc"])),
        "front_end_ms": vars(Spread.of([turn.front_end_ms for turn in found[name]])),
    }


def spread(found: dict[str, float], digits: int) -> str:
    """Returns the median and the quartiles."""
    median, low, high = (f"{found[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("http_cost.json"))
    parser.add_argument("serve", nargs="*", help="after --: options of gradcam serve")
    arguments = parser.parse_args()
    machine = results.Machine.here()
    with ExitStack() as stack, open_bar() as bar:
        model, measured = subjects(stack, arguments)
        task = bar.add_task("", total=len(measured) * arguments.rounds)

        def on_turn(name: str) -> None:
            bar.update(task, description=name)
            bar.advance(task)

        found = interleave(measured, arguments.rounds, on_turn=on_turn)
    rows = [row(name, found) for name in measured]
    settings = {
        "model": model,
        "users": arguments.users,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "image": arguments.image.name if arguments.image else "generated",
    }
    finished = results.finish("http_cost", settings, rows, machine=machine, trial=arguments.trial)
    finished.save(arguments.output)
    headings = ["transport", "images/s", "of gRPC's rate", "front end, ms of CPU"]
    cells = [
        [
            line["transport"],
            spread(line["images_per_s"], 1),
            spread(line["of_grpc"], 3),
            spread(line["front_end_ms"], 2),
        ]
        for line in rows
    ]
    print(table(headings, cells), arguments.output, sep="\n")


if __name__ == "__main__":
    main()
