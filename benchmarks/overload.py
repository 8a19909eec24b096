"""Measures goodput under overload: the right answers in time, over the rate of the bare graph.

Calls are due at random times (a Poisson process) at a multiple of the bare graph's rate, each with
a deadline of 500 ms: of gRPC for the gradcam server, of the HTTP client for the peers. An answer
counts if it names the class that the idle server names, and came within the deadline after its
due time. A peer has the same class and map as the gradcam server, or it is not measured. The bare
graph runs before and after each turn: the first sets the rate, and goodput is over the mean.

Usage: PYTHONPATH=tests:benchmarks python benchmarks/overload.py [OPTIONS] -- SERVE OPTIONS
"""

import argparse
import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import Client
from gradcam_server.bench import results
from gradcam_server.bench.bare import BareGraph
from gradcam_server.bench.interleave import turns
from gradcam_server.bench.load import MakeLoadClient, Open
from gradcam_server.bench.payload import request
from gradcam_server.bench.report import overload_table
from gradcam_server.bench.running import RunningServer, cpu_by_part, gradcam_serve, stopped
from gradcam_server.bench.statistics import Spread, latency_ms
from gradcam_server.bench.worker import Worker, cpu_s
from gradcam_server.cli.connection import Connection
from gradcam_server.cli.progress import open_bar
from gradcam_server.cli.serve import read_arguments
from options import add_peer_options, add_run_options
from peers.servers import RunningPeer, payloads, start_all
from peers.work import decode

OURS = "gradcam-server"
METHOD = "/gradcam.v1.ExplanationService/ExplainImage"
# Calls due in the first second are not counted: the queue fills.
SETTLE_S = 1.0
BARE_S = 2.0
IDLE_CORES, MAX_IDLE_WAIT_S = 0.15, 40.0


class OverloadClient(Protocol):
    """Sends the same call again and again."""

    async def open(self) -> None:
        """Connects."""
        ...

    async def best_class(self) -> int:
        """Makes a call; returns the class of the answer, and raises any failure."""
        ...

    async def close(self) -> None:
        """Disconnects."""
        ...


@dataclass(frozen=True)
class Ours:
    """Makes clients of the gradcam server.

    Attributes:
        address: HOST:PORT.
        message: A serialised ``ExplainImageRequest``.
        deadline_s: The deadline of each call.
    """

    address: str
    message: bytes
    deadline_s: float

    def __call__(self) -> OverloadClient:
        """Makes a client."""
        return _OurClient(self)


class _OurClient:
    def __init__(self, settings: Ours) -> None:
        self._settings = settings

    async def open(self) -> None:
        self._channel = Connection().aio_channel(self._settings.address)
        self._call: Any = self._channel.unary_unary(METHOD)

    async def best_class(self) -> int:
        found = await self._call(self._settings.message, timeout=self._settings.deadline_s)
        answer = pb.ExplainImageResponse.FromString(found)
        (explanation,) = answer.explanations
        return explanation.class_index if explanation.heatmaps else -1

    async def close(self) -> None:
        await self._channel.close()


@dataclass(frozen=True)
class Peer:
    """Makes clients of a peer.

    Attributes:
        make: Makes its load clients.
    """

    make: MakeLoadClient

    def __call__(self) -> OverloadClient:
        """Makes a client."""
        return _PeerClient(self.make)


class _PeerClient:
    def __init__(self, make: MakeLoadClient) -> None:
        self._client: Any = make()

    async def open(self) -> None:
        await self._client.open()

    async def best_class(self) -> int:
        await self._client.explain()
        return decode(self._client.answer)[0]

    async def close(self) -> None:
        await self._client.close()


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        name: ``answered``, ``wrong``, or the gRPC code or exception.
        has_retry_info: Whether the failure says when to try again.
        seconds: From the due time to the end.
        lag_s: From the due time to sending.
    """

    name: str
    has_retry_info: bool
    seconds: float
    lag_s: float


class Generator:
    """The process that sends the calls."""

    def run(self, make: Callable[[], OverloadClient], load: Open) -> tuple[list[Outcome], float]:
        """Returns the outcomes of the calls due after ``SETTLE_S``, and the cores it used."""
        return asyncio.run(self._run(make(), load))

    async def _run(self, client: OverloadClient, load: Open) -> tuple[list[Outcome], float]:
        await client.open()
        try:
            best = await client.best_class()
            started, used = time.perf_counter(), cpu_s()
            calls = []
            for due in load.times():
                if (wait := started + due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                calls.append((due, asyncio.create_task(self._call(client, best, started + due))))
            cores = (cpu_s() - used) / (time.perf_counter() - started)
            outcomes = [(due, await call) for due, call in calls]
            return [outcome for due, outcome in outcomes if due >= SETTLE_S], cores
        finally:
            await client.close()

    async def _call(self, client: OverloadClient, best: int, due: float) -> Outcome:
        lag_s, has_retry_info = time.perf_counter() - due, False
        try:
            name = "answered" if await client.best_class() == best else "wrong"
        except grpc.aio.AioRpcError as error:
            name, has_retry_info = error.code().name, _has_retry_info(error)
            if name == "UNAVAILABLE":
                name += f" {error.details()}"
        except Exception as error:  # noqa: BLE001 - every failure is an outcome
            name = f"{type(error).__name__} {error}".strip()
        return Outcome(name, has_retry_info, time.perf_counter() - due, lag_s)


def _has_retry_info(error: grpc.aio.AioRpcError) -> bool:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(cast("bytes", value))
            return any(item.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for item in status.details)
    return False


@dataclass(frozen=True)
class Subject:
    """A server with a payload, at a load.

    Attributes:
        server: Its name.
        payload: ``jpeg`` or ``raw``.
        load: The rate over that of the bare graph.
        make: Makes its clients.
        pid: Its first process.
    """

    server: str
    payload: str
    load: float
    make: Callable[[], OverloadClient]
    pid: int

    @property
    def name(self) -> str:
        """Tells it from the others."""
        return f"{self.server}, {self.payload}, {self.load:g}"


@dataclass(frozen=True)
class Turn:
    """A measured turn of a subject.

    Attributes:
        outcomes: Of the calls.
        generator_cores: CPU time of the generator over the time.
        server_cores: CPU time of the server over the time.
        bare_before: Images per second of the bare graph before it, by which the load is set.
        bare: The mean of the bare graph's images per second before and after it.
    """

    outcomes: Sequence[Outcome]
    generator_cores: float
    server_cores: float
    bare_before: float
    bare: float


def cores_used(pid: int) -> float:
    """Returns the CPU time of a server over half a second, in cores."""
    used = sum(cpu_by_part(pid).values())
    time.sleep(0.5)
    return (sum(cpu_by_part(pid).values()) - used) / 0.5


def wait_until_idle(pid: int, idle_cores: float) -> None:
    """Waits until a server has worked off the calls whose clients are gone.

    Args:
        pid: Its first process.
        idle_cores: The cores that it uses when idle: some peers poll.
    """
    until = time.perf_counter() + MAX_IDLE_WAIT_S
    while cores_used(pid) > idle_cores + IDLE_CORES and time.perf_counter() < until:
        pass


def measure(
    subjects: Sequence[Subject],
    bare: Callable[[], float],
    seconds: float,
    rounds: int,
    on_turn: Callable[[str], object],
) -> dict[str, list[Turn]]:
    """Measures all subjects in turns; the servers of the others are stopped meanwhile."""
    by_name = {subject.name: subject for subject in subjects}
    pids = {subject.pid for subject in subjects}
    idle = {pid: cores_used(pid) for pid in pids}
    found: dict[str, list[Turn]] = {name: [] for name in by_name}

    def measure_bare() -> float:
        with stopped(pids):
            return bare()

    with Worker(Generator) as generator:
        after = measure_bare()
        for number, name in turns(by_name, rounds):
            on_turn(name)
            subject, before = by_name[name], after
            with stopped(pids - {subject.pid}):
                used = sum(cpu_by_part(subject.pid).values())
                load = Open(subject.load * before, seconds, number)
                outcomes, cores = generator.call("run", subject.make, load)
                used = sum(cpu_by_part(subject.pid).values()) - used
                wait_until_idle(subject.pid, idle[subject.pid])
            after = measure_bare()
            rate = (before + after) / 2
            found[name].append(Turn(outcomes, cores, used / seconds, before, rate))
    return found


def row(
    subject: Subject, found: Sequence[Turn], seconds: float, deadline_s: float
) -> dict[str, Any]:
    """Summarises the turns of a subject."""
    cores = len(os.sched_getaffinity(0))
    measured_s = seconds - SETTLE_S
    rates = [_in_time(turn, deadline_s) / measured_s for turn in found]
    generator = float(np.median([turn.generator_cores for turn in found]))
    outcomes = [outcome for turn in found for outcome in turn.outcomes]
    goodput = Spread.of_ratios(rates, [turn.bare for turn in found])
    return {
        "server": subject.server,
        "payload": subject.payload,
        "load": subject.load,
        "images_per_s": vars(Spread.of(rates)),
        "bare_images_per_s": vars(Spread.of([turn.bare for turn in found])),
        "calls_per_s": float(np.median([subject.load * turn.bare_before for turn in found])),
        "goodput": vars(goodput),
        # The bare graph had all cores; the server leaves some of them to the generator.
        "goodput_without_generator": goodput.median * cores / (cores - generator),
        "generator_cores": generator,
        "server_cores": float(np.median([turn.server_cores for turn in found])),
        "late_ms_p99": float(np.quantile([outcome.lag_s for outcome in outcomes], 0.99)) * 1e3,
        "calls": len(outcomes),
        "outcomes": dict(_outcomes(outcomes)),
    }


def _in_time(turn: Turn, deadline_s: float) -> int:
    return sum(
        outcome.name == "answered" and outcome.seconds <= deadline_s for outcome in turn.outcomes
    )


def _outcomes(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in sorted({outcome.name for outcome in outcomes}):
        those = [outcome for outcome in outcomes if outcome.name == name]
        yield (
            name,
            {
                "count": len(those),
                "with_retry_info": sum(outcome.has_retry_info for outcome in those),
                "latency_ms": latency_ms([outcome.seconds for outcome in those], min_beyond=1),
            },
        )


def our_subjects(
    running: RunningServer,
    image: Path | None,
    payloads: Sequence[str],
    loads: Sequence[float],
    deadline_s: float,
) -> list[Subject]:
    """Returns the gradcam server with each payload at each load."""
    with Client(running.address) as client:
        info = client.get_model()
    size = info.input_height, info.input_width
    made = {
        payload: Ours(running.address, request(payload, image, size), deadline_s)
        for payload in payloads
    }
    return [
        Subject(OURS, payload, load, make, running.pid)
        for payload, make in made.items()
        for load in loads
    ]


def peer_subject(peer: RunningPeer, payload: str, load: float, deadline_s: float) -> Subject:
    """Returns a peer with a payload at a load."""
    make: Any = peer.clients[payload]
    limited = Peer(dataclasses.replace(make, timeout_s=deadline_s))
    return Subject(peer.candidate.name, payload, load, limited, peer.server.pid)


def results_of(
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    machine: results.Machine,
    notes: Sequence[str],
    trial: bool,
) -> results.Results:
    """Returns the results of rows, with the notes that all runs need."""
    notes = [
        "Servers and the load generator share the cores; the bare graph was alone on them.",
        "goodput_without_generator is goodput over the share of the bare graph's rate that "
        "corresponds to the cores which the generator leaves.",
        *notes,
    ]
    return results.finish("overload", settings, rows, machine=machine, notes=notes, trial=trial)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_peer_options(parser)
    add_run_options(parser, seconds=7, rounds=3, output="overload.json")
    parser.add_argument("--payload", default="raw,jpeg")
    parser.add_argument("--load", default="1,1.5,2,3", help="over the bare graph's rate")
    parser.add_argument("--peer-load", default="1.5")
    parser.add_argument("--deadline-ms", type=float, default=500)
    arguments = parser.parse_args()
    machine, deadline_s = results.Machine.here(), arguments.deadline_ms / 1e3
    with ExitStack() as stack, open_bar() as bar:
        config = read_arguments(arguments.serve)
        worker = stack.enter_context(Worker(BareGraph, config))
        calibration = worker.call("calibrate")
        bare = partial(worker.call, "images_per_s", calibration.fastest, BARE_S)
        running = stack.enter_context(gradcam_serve(arguments.serve))
        loads = [float(load) for load in arguments.load.split(",")]
        subjects = our_subjects(
            running, arguments.image, arguments.payload.split(","), loads, deadline_s
        )
        peers, notes = start_all(
            *(stack, arguments, payloads(arguments.image, running.address), running.address),
            bar.console.print,
        )
        subjects += [
            peer_subject(peer, "jpeg", float(load), deadline_s)
            for peer in peers
            for load in arguments.peer_load.split(",")
        ]
        task = bar.add_task("", total=len(subjects) * arguments.rounds)

        def on_turn(name: str) -> None:
            bar.update(task, description=name)
            bar.advance(task)

        found = measure(subjects, bare, arguments.seconds, arguments.rounds, on_turn)
    rows = [
        row(subject, found[subject.name], arguments.seconds, deadline_s) for subject in subjects
    ]
    settings = {
        "model": config.model[0],
        "deadline_ms": arguments.deadline_ms,
        "bare_batch_size": calibration.fastest,
        "seconds": arguments.seconds,
        "settle_s": SETTLE_S,
        "rounds": arguments.rounds,
        "image": arguments.image.name if arguments.image else "generated",
    }
    finished = results_of(rows, settings, machine, notes, arguments.trial)
    finished.save(arguments.output)
    print(overload_table(rows), arguments.output, sep="\n")


if __name__ == "__main__":
    main()
