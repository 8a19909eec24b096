"""Measures what HTTP costs beside gRPC: the same server, JPEG in, JSON or a message out.

Closed loops of users, each with a connection of its own, take turns over the two transports, and
over peers around the same graph (``--peer litserve``). Each round gives one ratio of the
throughputs. CPU time is that of the server's front end for an image.

Usage: PYTHONPATH=tests:benchmarks python benchmarks/http_cost.py [OPTIONS] -- SERVE OPTIONS
"""

import argparse
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
from gradcam_server.bench.running import RunningServer, cpu_by_part, gradcam_serve, stopped
from gradcam_server.bench.statistics import Spread
from gradcam_server.cli.connection import Connection
from gradcam_server.cli.progress import open_bar
from options import add_peer_options, add_run_options
from peers.servers import RunningPeer, free_port, payloads, start_all

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
    """One measurement: images per second, and the front end's CPU time in ms per image.

    A peer has no front end of its own: its time is left out.
    """

    images_per_s: float
    front_end_ms: float = 0.0


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
    stack: ExitStack, arguments: argparse.Namespace, say: Callable[[str], object]
) -> tuple[str, dict[str, Callable[[], Turn]]]:
    """Starts the servers; returns the model, and what measures each transport and peer by name."""
    port = free_port()
    options = [*arguments.serve, "--http-port", str(port)]
    running = stack.enter_context(gradcam_serve(options))
    generators = stack.enter_context(Generators())
    with Client(running.address) as client:
        info = client.get_model()
    message = request("jpeg", arguments.image, (info.input_height, info.input_width))
    url = f"http://127.0.0.1:{port}/v1/models/{info.name}:explain"
    load = Closed(arguments.users, arguments.seconds)
    sent = {"jpeg": payloads(arguments.image, running.address)["jpeg"]}
    peers, skipped = start_all(stack, arguments, sent, running.address, say)
    for sentence in skipped:
        say(sentence)

    def ours(client: MakeLoadClient) -> Turn:
        with stopped(peer.server.pid for peer in peers):  # some use cores when idle
            return measure(running, generators, load, client)

    def theirs(peer: RunningPeer) -> Turn:
        with stopped(other.server.pid for other in peers if other is not peer):
            return Turn(generators.run(peer.clients["jpeg"], load, SETTLE_S).images_per_s)

    return info.name, {
        "http": lambda: ours(Http(url, jpeg(arguments.image))),
        "grpc": lambda: ours(Unary(running.address, message, Connection())),
        **{peer.candidate.name: partial(theirs, peer) for peer in peers},
    }


def row(name: str, found: dict[str, list[Turn]]) -> dict[str, Any]:
    """Summarises a transport: images per second, their ratio to gRPC's, and CPU time."""
    rates = {key: [turn.images_per_s for turn in turns] for key, turns in found.items()}
    return {
        "transport": name,
        "images_per_s": vars(Spread.of(rates[name])),
        "of_grpc": vars(Spread.of_ratios(rates[name], rates["grpc"])),
        "http_of_it": vars(Spread.of_ratios(rates["http"], rates[name])),
        "front_end_ms": vars(Spread.of([turn.front_end_ms for turn in found[name]])),
    }


def spread(found: dict[str, float], digits: int) -> str:
    """Returns the median and the quartiles."""
    median, low, high = (f"{found[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_options(parser, seconds=5, rounds=8, output="http_cost.json")
    add_peer_options(parser)
    parser.add_argument("--users", type=int, default=16)
    parser.set_defaults(peer=["none"])
    arguments = parser.parse_args()
    machine = results.Machine.here()
    with ExitStack() as stack, open_bar() as bar:
        model, measured = subjects(stack, arguments, bar.console.print)
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
    headings = ["server", "images/s", "of gRPC's rate", "HTTP over it", "front end, ms of CPU"]
    cells = [
        [
            line["transport"],
            spread(line["images_per_s"], 1),
            spread(line["of_grpc"], 3),
            spread(line["http_of_it"], 3),
            spread(line["front_end_ms"], 2),
        ]
        for line in rows
    ]
    print(table(headings, cells), arguments.output, sep="\n")


if __name__ == "__main__":
    main()
