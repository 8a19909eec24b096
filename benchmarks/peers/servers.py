"""Starts the peers: with the server's graph, or with one that a user would write."""

import argparse
import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradcam_client import Client
from gradcam_server.bench.load import MakeLoadClient
from gradcam_server.bench.payload import jpeg, pixels
from gradcam_server.bench.running import RunningServer, StartError
from peers import load_clients
from peers.load_clients import Payload
from peers.work import decode

BENCHMARKS = Path(__file__).parents[1]
TRY_S = 10.0
START_S = 90.0
SAME_GRAPH, OWN_GRAPH = "the same graph", "their own graph"
GRAPHS = {"server": "", "onnx": "ONNX closed form", "torch": "torch autograd"}
# pytriton has no backend for ONNX: what runs is the same Python as in the other two.
HAND_MADE = (("litserve", "onnx"), ("mosec", "onnx"), ("litserve", "torch"))


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    Attributes:
        name: Its name.
        module: Its script.
        package: What must be installed.
        make_client: Makes a load client from an address and what it sends.
    """

    name: str
    module: str
    package: str
    make_client: Callable[[str, Payload], MakeLoadClient]


PEERS = {
    "litserve": Peer("LitServe", "peers.litserve_peer", "litserve", load_clients.litserve),
    "mosec": Peer("mosec", "peers.mosec_peer", "mosec", load_clients.mosec),
    "ray": Peer("Ray Serve", "peers.ray_peer", "ray.serve", load_clients.plain),
    "triton": Peer("Triton (pytriton)", "peers.triton_peer", "pytriton", load_clients.triton),
}


@dataclass(frozen=True)
class Candidate:
    """A peer with a graph and a number of workers.

    Attributes:
        key: The peer, one of ``PEERS``.
        workers: Its workers, each with its part of the cores.
        graph: One of ``GRAPHS``.
    """

    key: str
    workers: int
    graph: str = "server"

    @property
    def peer(self) -> Peer:
        """The peer."""
        return PEERS[self.key]

    @property
    def group(self) -> str:
        """What the peer is compared for."""
        return SAME_GRAPH if self.graph == "server" else OWN_GRAPH

    @property
    def name(self) -> str:
        """Tells it from the other candidates."""
        workers = "" if self.workers == 1 else f"{self.workers} workers"
        return ", ".join(filter(None, [self.peer.name, GRAPHS[self.graph], workers]))


@dataclass(frozen=True)
class RunningPeer:
    """A peer that answers.

    Attributes:
        candidate: What it is.
        server: Its process.
        clients: Makers of its load clients, by payload.
    """

    candidate: Candidate
    server: RunningServer
    clients: Mapping[str, MakeLoadClient] = field(default_factory=dict)


def candidates(arguments: argparse.Namespace) -> Iterator[Candidate]:
    """Yields the candidates that the options name (see ``options.add_peer_options``)."""
    counts = {}
    for name in arguments.peer or PEERS:
        key, _, own = name.partition(":")
        if key != "none":
            counts[key] = [int(count) for count in (own or arguments.workers).split(",")]
    yield from (Candidate(key, count) for key, of_peer in counts.items() for count in of_peer)
    for key, graph in HAND_MADE if arguments.hand_made else ():
        # Eager torch holds the interpreter's lock: more workers only share the cores.
        of_peer = counts.get(key, []) if graph == "onnx" else counts.get(key, [])[:1]
        yield from (Candidate(key, count, graph) for count in of_peer)


def payloads(image: Path | None, address: str) -> dict[str, Payload]:
    """Returns what is sent to a model of the gradcam server at an address, by name."""
    with Client(address) as client:
        info = client.get_model()
    return {"jpeg": jpeg(image), "raw": pixels(image, (info.input_height, info.input_width))}


def start_all(
    stack: ExitStack,
    arguments: argparse.Namespace,
    sent: Mapping[str, Payload],
    ours: str,
    say: Callable[[str], object],
) -> tuple[list[RunningPeer], list[str]]:
    """Starts the peers that can be started.

    Args:
        stack: Closes them.
        arguments: Options of ``options.add_peer_options``.
        sent: The payloads, by name.
        ours: The address of the gradcam server, whose answers are the right ones.
        say: Called with sentences about the progress.

    Returns:
        The peers that give the right answers, and sentences about the others.
    """
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    running, skipped = [], []
    for candidate in candidates(arguments):
        peer, python = candidate.peer, pythons.get(candidate.key, sys.executable)
        if not is_installed(peer.package, python):
            skipped.append(f"{peer.name} is not installed, so it was left out.")
            continue
        say(f"Starting {candidate.name}")
        try:
            server = start_patiently(candidate, python, list(sent.values()), arguments)
        except StartError as error:
            say(str(error))
            skipped.append(f"{candidate.name} did not start, so it was left out.")
            continue
        stack.enter_context(server)
        clients = {name: peer.make_client(server.address, load) for name, load in sent.items()}
        if wrong := [
            name for name, make in clients.items() if not agrees(make, ours, sent[name], say)
        ]:
            server.close()
            skipped.append(
                f"{candidate.name} gave another answer than the server ({', '.join(wrong)}), so "
                "it was not timed."
            )
            continue
        running.append(RunningPeer(candidate, server, clients))
    return running, list(dict.fromkeys(skipped))


def start_patiently(
    candidate: Candidate, python: str, sent: Sequence[Payload], arguments: argparse.Namespace
) -> RunningServer:
    """Starts a candidate, twice if need be: pytriton's parts wait a second only for each other.

    Raises:
        StartError: It does not answer.
    """
    try:
        return start(candidate, python, sent, arguments)
    except StartError:
        return start(candidate, python, sent, arguments)


def start(
    candidate: Candidate, python: str, sent: Sequence[Payload], arguments: argparse.Namespace
) -> RunningServer:
    """Starts a candidate, and waits for its first answer to each payload.

    Raises:
        StartError: It does not answer.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    makes = [candidate.peer.make_client(address, payload) for payload in sent]

    def is_ready(_: str) -> str | None:
        try:
            for make in makes:
                asyncio.run(explain_once(make))
        except Exception:  # noqa: BLE001 - the peer is not ready yet
            return None
        return address

    command = [python, "-m", candidate.peer.module, "--port", str(port)]
    command += ["--workers", str(candidate.workers), "--delay-ms", str(arguments.delay_ms)]
    if candidate.graph != "server":
        command += ["--graph", candidate.graph, "--hand-made", str(arguments.hand_made)]
    environment = {"PYTHONPATH": os.pathsep.join(_paths())}
    return RunningServer([*command, "--", *arguments.serve], is_ready, environment, START_S)


def _paths() -> list[str]:
    """Returns where a peer's interpreter finds the code under test."""
    packages = ("gradcam", "gradcam_client", "gradcam_server")
    specs = [importlib.util.find_spec(package) for package in packages]
    found = [
        str(Path(place).parent)
        for spec in specs
        if spec and spec.submodule_search_locations
        for place in spec.submodule_search_locations
    ]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    here = [str(BENCHMARKS), str(BENCHMARKS.parent / "tests"), *found]
    return list(dict.fromkeys(filter(None, [*here, *map(os.path.abspath, given)])))


async def explain_once(make: MakeLoadClient) -> bytes:
    """Sends one request to a peer, and returns the answer."""
    client = make()
    await client.open()
    try:
        async with asyncio.timeout(TRY_S):
            await client.explain()
        answer: bytes = getattr(client, "answer")  # noqa: B009 - all peers' clients have it
        return answer
    finally:
        await client.close()


def free_port() -> int:
    """Returns a free port; the two after it are probably free, too."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
    return port


def is_installed(package: str, python: str) -> bool:
    """Returns whether a Python interpreter can import a package."""
    command = [python, "-c", f"import {package}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def agrees(
    make: MakeLoadClient, address: str, payload: Payload, say: Callable[[str], object]
) -> bool:
    """Returns whether a peer gives the same class and map as the gradcam server."""
    try:
        answer = asyncio.run(explain_once(make))
    except Exception as error:  # noqa: BLE001 - any failure is a wrong answer
        say(repr(error))
        return False
    with Client(address) as client:
        explanation = client.explain(payload).explanations[0]
    best, heatmap = decode(answer)
    ours = np.asarray(explanation.heatmap, np.float32).ravel()
    return best == explanation.index and np.allclose(
        heatmap, ours, rtol=1e-3, atol=1e-3 * float(ours.max())
    )
