"""Part of the check: ``gradcam serve`` on the device under load, with 8, 4 and 1 front ends.

The load generators are those of ``gradcam bench serving``; each has many connections, which the
kernel spreads over the front ends. ``--bare`` is the throughput of the bare graph from the host at
its best batch size, from the part ``graph``: the first row repeats it.

Usage: python -m gpu_check.served --bundle FOLDER --platform cuda --seconds 90 --out FILE
"""

import argparse
import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from gpu_check.part import Part, Row, add_options
from gradcam_server.bench.load import Generators, LoadClient, MakeLoadClient, ServerStats
from gradcam_server.bench.load_clients import Stream, Unary
from gradcam_server.bench.payload import request
from gradcam_server.bench.running import RunningServer, gradcam_serve
from gradcam_server.bench.serving import Plan, Subject, measure
from gradcam_server.cli.connection import Connection
from gradcam_server.exports.manifest import read_manifest

_SETTLE_S = 0.5
_SHARES = (0.5, 0.8)
# A photograph's JPEG stands for many requests; the same bytes each time.
_STREAM, _UNARY, _JPEG = ("raw", "stream"), ("raw", "unary"), ("jpeg", "stream")


@dataclass(frozen=True)
class Effort:
    """How much load to generate.

    Attributes:
        frontends: Numbers of front ends, in their order.
        generators: Processes that generate load.
        connections: Connections of each generator.
        users: Users of the closed loops for each front end.
        phase_s: Seconds of a load, of which the first half second is not measured.
        needed_s: Seconds that a server takes with its measurements, roughly.
    """

    frontends: Sequence[int]
    generators: int
    connections: int
    users: int
    phase_s: float
    needed_s: float


def effort_for(platform: str, cores: int) -> Effort:
    """Returns the effort for a machine: front ends, generators and the engine share the cores."""
    if platform == "cpu":
        return Effort((1,), 1, 2, 4, 5.0, 50)
    generators = max(1, min(6, cores // 2 - 2))
    counts = [count for count in (8, 4, 1) if count + generators < cores or count == 1]
    return Effort(counts, generators, 8, 128, 3.0, 20)


@dataclass(frozen=True)
class SeveralConnections:
    """Makes a load client that spreads its requests over several connections.

    Attributes:
        make: Makes a client with one connection.
        count: The number of connections.
    """

    make: MakeLoadClient
    count: int

    def __call__(self) -> LoadClient:
        """Makes the client."""
        return _SeveralClients([self.make() for _ in range(self.count)])


class _SeveralClients:
    def __init__(self, clients: Sequence[LoadClient]) -> None:
        self._clients, self._turns = clients, cycle(clients)

    async def open(self) -> None:
        await asyncio.gather(*(client.open() for client in self._clients))

    async def explain(self) -> ServerStats | None:
        return await next(self._turns).explain()

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients))


def serve_options(
    folder: Path, batch_sizes: Sequence[int], device: str, frontends: int, cache: Path | None
) -> list[str]:
    """Returns the options of ``gradcam serve``, with room for full batches in the queue."""
    sizes = ",".join(map(str, batch_sizes))
    options = ["--model", f"resnet50={folder}", "--batch-sizes", sizes, "--device", device]
    options += ["--frontends", str(frontends), "--watchdog-s", "120"]
    # The front ends share these limits.
    options += ["--max-queue-length", "8192", "--max-streams", "8192"]
    return options + (["--cache-dir", str(cache)] if cache else [])


def measure_server(
    part: Part, server: RunningServer, frontends: int, effort: Effort, image: Path | None, size: Any
) -> None:
    """Measures a server: closed loops, then open loops at shares of their throughput."""
    messages = {payload: request(payload, image, size) for payload in ("raw", "jpeg")}
    connection = Connection()
    calls: dict[tuple[str, str], MakeLoadClient] = {
        _STREAM: Stream(server.address, messages["raw"], connection),
        _UNARY: Unary(server.address, messages["raw"], connection),
        _JPEG: Stream(server.address, messages["jpeg"], connection),
    }
    several = {key: SeveralConnections(make, effort.connections) for key, make in calls.items()}
    with Generators(effort.generators) as generators:

        def run(
            clients: Mapping[tuple[str, str], MakeLoadClient],
            users: tuple[int, ...],
            rates: tuple[float, ...] = (),
        ) -> Sequence[Row]:
            plan = Plan(users, rates, effort.phase_s, _SETTLE_S, 1)
            subject = Subject("gradcam-server", clients, server.pid, server.ready_s)
            rows = measure([subject], plan, generators)
            loads = [row for row in rows if row["kind"] == "load"]
            for row in loads:
                part.add({**row, "kind": "served", "frontends": frontends})
            return loads

        users = (effort.users * frontends,)
        is_first = frontends == effort.frontends[0]
        kept = several if is_first else {key: several[key] for key in (_STREAM, _UNARY)}
        closed = run(kept, users)
        if is_first:
            rate = closed[0]["images_per_s"]["median"]
            rates = tuple(round(share * rate, 1) for share in _SHARES)
            run({_STREAM: several[_STREAM]}, (), rates)
            run({_STREAM: calls[_STREAM], _UNARY: calls[_UNARY]}, (1,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--cache", type=Path, help="folder of what XLA compiled")
    parser.add_argument("--bare", type=float, help="images/s of the bare graph from the host")
    arguments = parser.parse_args()
    part = Part.of(arguments)
    if arguments.bare:
        part.add({"kind": "bare", "from_host_images_per_s": arguments.bare})
    else:
        part.note("the rate of the bare graph is unknown, so there is no efficiency")
    effort = effort_for(part.platform, len(os.sched_getaffinity(0)))
    image = next(iter(sorted((part.bundle / "photographs").glob("*.jpg"))), None)
    folder = part.bundle / "resnet50-bfloat16"
    manifest = read_manifest(folder)
    batch_sizes = part.batch_sizes(manifest.graphs[0].modules)
    for number, frontends in enumerate(effort.frontends):
        if part.seconds_left < effort.needed_s and number:
            part.note(f"{frontends} front ends: skipped, {part.seconds_left:.0f} s were left")
            continue
        options = serve_options(folder, batch_sizes, part.device, frontends, arguments.cache)
        with ExitStack() as stack:
            try:
                server = stack.enter_context(gradcam_serve(options))
                measure_server(part, server, frontends, effort, image, manifest.input_size)
            except Exception as error:  # noqa: BLE001 - other numbers are still measured
                names = {"kind": "served", "frontends": frontends}
                part.add({**names, "error": f"{type(error).__name__}: {error}"[-2000:]})


if __name__ == "__main__":
    main()
