"""Measures what --compute-streams changes: throughput under load and the latency of one user.

Servers with different numbers of streams take turns, on an idle machine and beside a busy process
(nice 10). Ratios are of turns of one round, so that noise of the machine cancels.

Usage: python benchmarks/streams.py [--streams 1,auto] [--users 1,16] [--idle-only] [--rounds N]
       [--seconds S] [--output FILE] -- SERVE OPTIONS
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradcam_client import Client
from gradcam_server.bench.interleave import interleave
from gradcam_server.bench.load import Closed, Generators
from gradcam_server.bench.load_clients import Unary
from gradcam_server.bench.payload import request
from gradcam_server.bench.results import Machine
from gradcam_server.bench.running import RunningServer, cpu_by_part, family, gradcam_serve
from gradcam_server.bench.statistics import Spread
from gradcam_server.cli.connection import Connection
from neighbour import neighbour

_SETTLE_S = 0.5

Figures = dict[str, float]


def switches(pid: int) -> tuple[int, int]:
    """Returns the voluntary and involuntary context switches of all threads of a server."""
    found = {"voluntary_ctxt_switches": 0, "nonvoluntary_ctxt_switches": 0}
    for process in family(pid):
        for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
            for line in status.read_text().splitlines():
                name, _, value = line.partition(":")
                if name in found:
                    found[name] += int(value)
    return found["voluntary_ctxt_switches"], found["nonvoluntary_ctxt_switches"]


def measure(
    server: RunningServer, generators: Generators, make: Unary, load: Closed, busy: bool
) -> Figures:
    """Runs a load, and returns its figures for each image."""
    with neighbour(busy):
        voluntary, forced = switches(server.pid)
        cpu_s = sum(cpu_by_part(server.pid).values())
        records = generators.run(make, load, _SETTLE_S)
        cpu_s = sum(cpu_by_part(server.pid).values()) - cpu_s
        after = switches(server.pid)
    if records.failures:
        raise RuntimeError(f"requests failed: {dict(records.failures)}")
    images = records.all_answered
    return {
        "images_per_s": records.images_per_s,
        "p50_ms": float(np.median(records.latencies_s)) * 1e3,
        "cpu_ms": cpu_s / images * 1e3,
        "voluntary_switches": (after[0] - voluntary) / images,
        "forced_switches": (after[1] - forced) / images,
    }


def summarise(name: str, found: list[Figures], base: list[Figures]) -> dict[str, Any]:
    """Returns a row: the spread of each figure, and of its ratio to the first server's."""
    row: dict[str, Any] = {"name": name}
    for figure in found[0]:
        values, bases = ([each[figure] for each in of] for of in (found, base))
        row[figure] = asdict(Spread.of(values))
        if min(bases) > 0:
            row[f"{figure}_ratio"] = asdict(Spread.of_ratios(values, bases))
    return row


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,auto", help="values of --compute-streams")
    parser.add_argument("--users", default="1,16", help="numbers of users of the closed loops")
    parser.add_argument("--idle-only", action="store_true", help="never beside a busy process")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/streams.json"))
    parser.add_argument("serve", nargs="*", help="options of gradcam serve")
    arguments = parser.parse_args()
    machine = Machine.here()
    subjects: dict[str, Callable[[], Figures]] = {}
    with ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        generators = stack.enter_context(Generators(1))
        wanted = arguments.streams.split(",")
        for streams in wanted:
            options = [*arguments.serve, "--compute-streams", streams, "--cache-dir", cache]
            server = stack.enter_context(gradcam_serve(options))
            print(*(line for line in server.text.splitlines() if "Streams of" in line), sep="\n")
            with Client(server.address) as client:
                info = client.get_model()
            size = info.input_height, info.input_width
            make = Unary(server.address, request("jpeg", None, size), Connection())
            for users in map(int, arguments.users.split(",")):
                for busy in (False,) if arguments.idle_only else (False, True):
                    name = f"{streams}, {users} users, {'beside a process' if busy else 'idle'}"
                    load = Closed(users, arguments.seconds)
                    subjects[name] = partial(measure, server, generators, make, load, busy)
        found = interleave(subjects, arguments.rounds)
    rows = []
    for name, values in found.items():
        base = name.replace(name.partition(",")[0], wanted[0], 1)
        rows.append(row := summarise(name, values, found[base]))
        print(name)
        for figure, spread in row.items():
            if figure != "name":
                print(
                    f"  {figure}: {spread['median']:.3g} ({spread['low']:.3g} to "
                    f"{spread['high']:.3g})"
                )
    results = {
        "machine": asdict(machine),
        "serve": arguments.serve,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
