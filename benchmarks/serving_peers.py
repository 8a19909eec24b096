"""The serving suite with peers: LitServe, mosec, Ray Serve and Triton around the same graph.

All servers are up during the whole run; their phases take turns with ours. A peer gets the same
JPEG, and decodes, resizes and computes by our own functions; its answer is compared with ours
before anything is timed. Peers that are not installed are skipped, and the results say so.

Usage: PYTHONPATH=tests:benchmarks python benchmarks/serving_peers.py [OPTIONS] -- SERVE OPTIONS
"""

import argparse
import asyncio
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import numpy as np
from rich.progress import Progress

from gradcam_client import Client
from gradcam_server.bench.load import MakeLoadClient
from gradcam_server.bench.payload import jpeg
from gradcam_server.bench.running import RunningServer, StartError, gradcam_serve
from gradcam_server.bench.serving import Subject
from gradcam_server.bench.serving_run import GradcamServer, run
from gradcam_server.cli.connection import Connection
from gradcam_server.cli.progress import open_bar
from gradcam_server.cli.serve import read_arguments
from peers import load_clients
from peers.work import decode

FOLDER = Path(__file__).parent
TRY_S = 10.0


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    Attributes:
        name: Its name.
        module: Its script.
        package: What must be installed.
        make_client: Makes a load client from an address and an image.
    """

    name: str
    module: str
    package: str
    make_client: Callable[[str, bytes], MakeLoadClient]


PEERS = {
    "litserve": Peer("LitServe", "peers.litserve_peer", "litserve", load_clients.litserve),
    "mosec": Peer("mosec", "peers.mosec_peer", "mosec", load_clients.mosec),
    "ray": Peer("Ray Serve", "peers.ray_peer", "ray.serve", load_clients.plain),
    "triton": Peer("Triton (pytriton)", "peers.triton_peer", "pytriton", load_clients.triton),
}


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


def start(
    peer: Peer, python: str, image: bytes, workers: int, arguments: argparse.Namespace
) -> RunningServer:
    """Starts a peer of some workers, and waits for its first answer.

    Raises:
        StartError: It does not answer.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"

    def is_ready(_: str) -> str | None:
        try:
            asyncio.run(explain_once(peer.make_client(address, image)))
        except Exception:  # noqa: BLE001 - the peer is not ready yet
            return None
        return address

    command = [python, "-m", peer.module, "--port", str(port), "--workers", str(workers)]
    command += ["--delay-ms", str(arguments.delay_ms)]
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths)}
    return RunningServer([*command, "--", *arguments.serve], is_ready, environment)


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


def agrees(answer: bytes, address: str, image: bytes) -> bool:
    """Returns whether a peer gives the same class and map as the gradcam server."""
    with Client(address) as client:
        explanation = client.explain(image).explanations[0]
    best, heatmap = decode(answer)
    ours = np.asarray(explanation.heatmap, np.float32).ravel()
    return best == explanation.index and np.allclose(
        heatmap, ours, rtol=1e-3, atol=1e-3 * float(ours.max())
    )


def start_peers(
    stack: ExitStack, arguments: argparse.Namespace, image: bytes, ours: str, bar: Progress
) -> tuple[list[Subject], list[str]]:
    """Starts the peers that can be; returns them, and sentences about the others."""
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    subjects, skipped = [], []
    every = [int(count) for count in arguments.workers.split(",")]
    for key, workers in itertools.product(arguments.peer or PEERS, every):
        peer, python = PEERS[key], pythons.get(key, sys.executable)
        name = peer.name if workers == 1 else f"{peer.name}, {workers} workers"
        if not is_installed(peer.package, python):
            if workers == every[0]:
                skipped.append(f"{peer.name} is not installed, so it was left out.")
            continue
        bar.console.print(f"Starting {name}")
        try:
            server = start(peer, python, image, workers, arguments)
        except StartError as error:
            bar.console.print(error)
            skipped.append(f"{name} did not start, so it was left out.")
            continue
        stack.enter_context(server)
        make = peer.make_client(server.address, image)
        if not agrees(asyncio.run(explain_once(make)), ours, image):
            server.close()
            skipped.append(f"{name} gave another answer than the server, so it was not timed.")
            continue
        subjects.append(Subject(name, {("jpeg", "unary"): make}, server.pid, server.ready_s))
    return subjects, skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="append", choices=PEERS, help="all by default")
    parser.add_argument(
        *("--python", "-p"),
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="the interpreter that has the peer, if it is not this one",
    )
    parser.add_argument("--workers", default="1", help="of each peer; 1,2 for both (default 1)")
    parser.add_argument("--delay-ms", type=float, default=2.0, help="of the peers' batches")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--users", default="1,8,32")
    parser.add_argument("--load", default="0.5,0.7,0.9")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--generators", type=int, default=1)
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("serving_peers.json"))
    parser.add_argument("serve", nargs="*", help="after --: options of gradcam serve")
    arguments = parser.parse_args()
    image = jpeg(arguments.image)
    with ExitStack() as stack, open_bar() as bar:
        running = stack.enter_context(gradcam_serve(arguments.serve))
        peers, skipped = start_peers(stack, arguments, image, running.address, bar)
        config = read_arguments(arguments.serve)
        results = run(
            GradcamServer(
                running.address,
                Connection(),
                pid=running.pid,
                ready_s=running.ready_s,
                config=config,
            ),
            bar,
            image=arguments.image,
            payloads=("jpeg",),
            calls=("unary",),
            users=tuple(int(users) for users in arguments.users.split(",")),
            load=tuple(float(load) for load in arguments.load.split(",") if load),
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            generators=arguments.generators,
            trial=arguments.trial,
            others=peers,
            skipped=skipped,
        )
    results.save(arguments.output)
    print(*results.notes, arguments.output, sep="\n")


if __name__ == "__main__":
    main()
