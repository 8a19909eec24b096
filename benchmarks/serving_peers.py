"""The serving suite with peers: LitServe, mosec, Ray Serve and Triton, in one interleaved run.

A peer gets the same files and pixels, decodes and resizes by our own functions, and runs the
server's graph; with ``--hand-made`` also what a user would write without the server. Its answer is
compared with ours before anything is timed. Peers that cannot be had are left out, and the results
say so. All servers are up during the whole run. Its parts, after each of which results are written:

    warm-up    the server under load: it learns what its batch sizes cost
    choice     every peer with every number of workers: the best of each peer stays
    loads      closed and open loops of all that stay, in turns with the bare graph: as many rounds
               as fit into --minutes
    context    the loads of --context and raw pixels, in two rounds
    neighbour  some of these loads beside a niced process that computes without a pause
    overload   1.5 times the bare graph's rate with deadlines of 500 ms, see overload.py

Usage: PYTHONPATH=tests:benchmarks python benchmarks/serving_peers.py [OPTIONS] -- SERVE OPTIONS
"""

import argparse
import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from rich.progress import Progress

import overload
from gradcam_server.bench import results, serving
from gradcam_server.bench.bare import BareGraph, Calibration
from gradcam_server.bench.comparison import compare
from gradcam_server.bench.load import Closed, Generators, Load, Open
from gradcam_server.bench.report import overload_table
from gradcam_server.bench.running import RunningServer, gradcam_serve
from gradcam_server.bench.serving_run import GradcamServer, notes_on
from gradcam_server.bench.worker import Worker
from gradcam_server.cli.connection import Connection
from gradcam_server.cli.progress import open_bar
from gradcam_server.cli.serve import read_arguments
from gradcam_server.config.settings import ServeConfig
from neighbour import neighbour
from options import add_peer_options, add_run_options
from peers.servers import OWN_GRAPH, SAME_GRAPH, RunningPeer, payloads, start_all

UNARY = "unary"
CALIBRATION_ROUNDS = 5
WARM_UP_S, WARM_UP_USERS = 20.0, (16, 32)
CHOICE_ROUNDS, CHOICE_S, CHOICE_USERS = 2, 1.5, 16
# What a user would write does not get loads that only fill its queue.
MAX_WAIT_S = 4.0
OWN_GRAPH_LOADS = (16, 0.8)
CONTEXT_ROUNDS, CONTEXT_S, RAW_LOADS = 2, 2.0, (16, 0.8)
NEIGHBOUR_ROUNDS, NEIGHBOUR_S, NEIGHBOUR_USERS, NEIGHBOUR_LOAD = 3, 2.0, 16, 0.3
OVERLOAD_ROUNDS, OVERLOAD_S, OVERLOAD_LOAD, OVERLOAD_DEADLINE_S = 2, 5.0, 1.5, 0.5
# Seconds of a turn beside its load: connecting, the last answers.
TURN_S = 0.4


@dataclass
class Run:
    """What all parts of a run share.

    Attributes:
        arguments: The options.
        bar: Shows the progress.
        running: The gradcam server.
        ours: Its subject.
        reduced: A gradcam server of less precision, which what a user would write is compared with,
            too.
        peers: The peers that answer.
        bare: Measures the bare graph for some seconds; returns images per second.
        calibration: The cost of the bare graph's batches.
        generators: The load generators.
        bare_rates: What the bare graph reached until now, in images per second.
        ends: When the run should end, by ``time.perf_counter``.
        notes: Sentences that a reader needs.
        capacity: Images per second of each peer, in the choice.
        rates: Requests per second by load, once they are set.
    """

    arguments: argparse.Namespace
    bar: Progress
    running: RunningServer
    ours: serving.Subject
    reduced: serving.Subject | None
    peers: list[RunningPeer]
    bare: Callable[[float], float]
    calibration: Calibration
    generators: Generators
    bare_rates: list[float]
    ends: float
    notes: list[str]
    capacity: dict[str, float] = field(default_factory=dict)
    rates: dict[float, float] = field(default_factory=dict)

    def subject(self, peer: RunningPeer, loads: Mapping[str, Sequence[Load]]) -> serving.Subject:
        """Returns a peer under loads, by payload."""
        return serving.Subject(
            peer.candidate.name,
            {(payload, UNARY): make for payload, make in peer.clients.items()},
            peer.server.pid,
            peer.server.ready_s,
            peer.candidate.group,
            {(payload, UNARY): of_payload for payload, of_payload in loads.items()},
        )

    def our_subject(self, loads: Mapping[str, Sequence[Load]]) -> serving.Subject:
        """Returns the gradcam server under loads, by payload."""
        by_call = {(payload, UNARY): of_payload for payload, of_payload in loads.items()}
        return dataclasses.replace(self.ours, loads=by_call)

    def set_rates(self) -> None:
        """Sets the loads by the bare graph's rate until now: in minutes, not in a lucky second."""
        rate = median(self.bare_rates)
        loads = [float(load) for load in self.arguments.load.split(",")]
        self.rates = {load: round(load * rate, 2) for load in loads}

    def _of_group(self, row: dict[str, Any]) -> dict[str, Any]:
        is_reduced = self.reduced is not None and row.get("server") == self.reduced.name
        return {**row, "against": OWN_GRAPH} if is_reduced and row["kind"] == "load" else row

    def measure(
        self,
        name: str,
        subjects: Sequence[serving.Subject],
        rounds: int,
        *,
        seconds: float,
        within_s: float = math.inf,
    ) -> list[dict[str, Any]]:
        """Measures a part; at most ``rounds`` rounds, and within some seconds."""
        settle_s = min(seconds / 5, 1.0)
        plan = serving.Plan((), (), seconds, settle_s, rounds, within_s=within_s, min_beyond=0)
        turns = serving.count_turns(subjects, plan, with_bare=True)
        self.bar.console.print(
            f"{name}: {rounds} rounds of {turns // rounds} turns, at most {within_s:.0f} s"
        )
        task = self.bar.add_task("", total=turns)

        def on_turn(subject: str) -> None:
            self.bar.update(task, description=f"{name}: {subject}")
            self.bar.advance(task)

        bare = partial(self.bare, seconds)
        found = serving.measure(subjects, plan, self.generators, bare, self.calibration, on_turn)
        self.bar.remove_task(task)
        self.bare_rates += [row["images_per_s"]["median"] for row in found if row["kind"] == "bare"]
        return [self._of_group(row) for row in found]


def warm_up(run: Run) -> None:
    """Gives the server the load from which it learns."""
    users = [Closed(count, WARM_UP_S) for count in WARM_UP_USERS]
    subjects = [run.our_subject({"jpeg": users})]
    if run.reduced is not None:
        subjects.append(dataclasses.replace(run.reduced, loads={("jpeg", UNARY): users[:1]}))
    run.measure("warm-up", subjects, 1, seconds=WARM_UP_S)


def choose(run: Run) -> list[dict[str, Any]]:
    """Measures all peers briefly, keeps the best, and returns a row for each.

    Of each peer with the server's graph stays the number of workers with the highest throughput;
    and the one that answers one user soonest, which has one worker with all threads; of each graph
    of a user the fastest.
    """
    closed, alone = Closed(CHOICE_USERS, CHOICE_S), Closed(1, CHOICE_S)
    subjects = [
        run.subject(
            peer,
            {"jpeg": [closed, alone] if peer.candidate.group == SAME_GRAPH else [closed]},
        )
        for peer in run.peers
    ]
    if not subjects:
        return []
    found = run.measure("choice", subjects, CHOICE_ROUNDS, seconds=CHOICE_S)
    rate, p50 = {}, {}
    for row in found:
        if row["kind"] == "load" and row["users"] == CHOICE_USERS:
            rate[row["server"]] = row["images_per_s"]["median"]
        elif row["kind"] == "load":
            p50[row["server"]] = row["latency_ms"]["p50"]
    run.capacity = rate
    kept = _kept(run.peers, rate, p50)
    if any(peer.candidate.group == OWN_GRAPH for peer in run.peers):
        run.notes.append(
            "Peers with a graph of their own were not measured in open loops of more requests than "
            f"they answered in a closed one, or with users who would wait over {MAX_WAIT_S:g} s."
        )
    rows = [
        {
            "kind": "candidate",
            "server": peer.candidate.name,
            "group": peer.candidate.group,
            "images_per_s": rate[peer.candidate.name],
            "p50_ms": p50.get(peer.candidate.name),
            "kept": peer.candidate.name in kept,
        }
        for peer in run.peers
    ]
    for peer in run.peers:
        if peer.candidate.name not in kept:
            peer.server.close()
    run.peers = [peer for peer in run.peers if peer.candidate.name in kept]
    return rows


def _kept(
    peers: Sequence[RunningPeer], rate: Mapping[str, float], p50: Mapping[str, float | None]
) -> set[str]:
    kinds: dict[tuple[str, ...], list[str]] = {}
    for peer in peers:
        candidate = peer.candidate
        own = candidate.group == OWN_GRAPH
        kind = (OWN_GRAPH, candidate.graph) if own else (SAME_GRAPH, candidate.key)
        kinds.setdefault(kind, []).append(candidate.name)
    kept = {max(names, key=lambda name: rate[name]) for names in kinds.values()}
    answered = {name: latency for name, latency in p50.items() if latency is not None}
    return kept | ({min(answered, key=lambda name: answered[name])} if answered else set())


def measure_loads(run: Run) -> list[dict[str, Any]]:
    """Measures the loads that are not ``--context``, in as many rounds as there is time for."""
    users, loads = _split(run, run.arguments.seconds, context=False)
    subjects = _under(run, {"jpeg": [*users, *loads]})
    within_s = run.ends - time.perf_counter() - _reserved_s(run)
    seconds, rounds = run.arguments.seconds, run.arguments.rounds
    return run.measure("loads", subjects, rounds, seconds=seconds, within_s=within_s)


def measure_context(run: Run) -> list[dict[str, Any]]:
    """Measures the loads of ``--context``, and raw pixels."""
    return run.measure("context", _context_subjects(run), CONTEXT_ROUNDS, seconds=CONTEXT_S)


def _context_subjects(run: Run) -> list[serving.Subject]:
    users, loads = _split(run, CONTEXT_S, context=True)
    raw: list[Load] = [
        Closed(int(load), CONTEXT_S) if load >= 1 else Open(_rate(run, load), CONTEXT_S)
        for load in RAW_LOADS
    ]
    return _under(run, {"jpeg": [*users, *loads], "raw": raw})


def _split(run: Run, seconds: float, *, context: bool) -> tuple[list[Load], list[Load]]:
    """Returns the closed and the open loops that are of ``--context``, or the others."""
    rare = {float(load) for load in run.arguments.context.split(",") if load}
    users = [int(count) for count in run.arguments.users.split(",")]
    return (
        [Closed(count, seconds) for count in users if (count in rare) == context],
        [Open(rate, seconds) for load, rate in run.rates.items() if (load in rare) == context],
    )


def _under(run: Run, loads: Mapping[str, Sequence[Load]]) -> list[serving.Subject]:
    """Returns all servers under loads, by payload; what a user would write gets two of them."""
    subjects = [run.our_subject(loads)]
    enough = {Closed: OWN_GRAPH_LOADS[0], Open: _rate(run, OWN_GRAPH_LOADS[1])}
    few = [load for load in loads["jpeg"] if _size(load) == enough[type(load)]]
    if run.reduced is not None and few:
        subjects.append(dataclasses.replace(run.reduced, loads={("jpeg", UNARY): few}))
    for peer in run.peers:
        capacity = run.capacity[peer.candidate.name]
        own = {"jpeg": [load for load in few if _is_possible(load, capacity)]}
        subjects.append(run.subject(peer, loads if peer.candidate.group == SAME_GRAPH else own))
    return subjects


def _size(load: Load) -> float:
    """Returns the users of a closed loop, or the requests per second of an open one."""
    return load.concurrency if isinstance(load, Closed) else load.rate


def _is_possible(load: Load, capacity: float) -> bool:
    """Returns whether a server of a capacity in images/s answers a load, in ``MAX_WAIT_S``."""
    if isinstance(load, Closed):
        return load.concurrency <= MAX_WAIT_S * capacity
    return load.rate <= capacity


def measure_beside_a_process(run: Run) -> list[dict[str, Any]]:
    """Measures some loads beside a busy process."""
    loads = _neighbour_loads(run)
    subjects = [run.our_subject(loads)]
    subjects += [run.subject(peer, loads) for peer in _same_graph(run)]
    with neighbour():
        found = run.measure("neighbour", subjects, NEIGHBOUR_ROUNDS, seconds=NEIGHBOUR_S)
    return [{**row, "beside": "a busy process"} for row in found if row["kind"] in ("load", "bare")]


def _neighbour_loads(run: Run) -> dict[str, list[Load]]:
    opened = Open(_rate(run, NEIGHBOUR_LOAD), NEIGHBOUR_S)
    return {"jpeg": [Closed(NEIGHBOUR_USERS, NEIGHBOUR_S), opened]}


def measure_overload(run: Run, machine: results.Machine, output: Path) -> None:
    """Measures goodput under overload, and writes results of its own."""
    subjects = overload.our_subjects(
        *(run.running, run.arguments.image, ("jpeg", "raw"), (OVERLOAD_LOAD,)),
        OVERLOAD_DEADLINE_S,
    )
    subjects += [
        overload.peer_subject(peer, "jpeg", OVERLOAD_LOAD, OVERLOAD_DEADLINE_S)
        for peer in _same_graph(run)
    ]
    task = run.bar.add_task("", total=len(subjects) * OVERLOAD_ROUNDS)

    def on_turn(name: str) -> None:
        run.bar.update(task, description=f"overload: {name}")
        run.bar.advance(task)

    bare = partial(run.bare, overload.BARE_S)
    found = overload.measure(subjects, bare, OVERLOAD_S, OVERLOAD_ROUNDS, on_turn)
    rows = [
        overload.row(subject, found[subject.name], OVERLOAD_S, OVERLOAD_DEADLINE_S)
        for subject in subjects
    ]
    settings = {
        **_settings(run),
        "deadline_ms": OVERLOAD_DEADLINE_S * 1e3,
        "seconds": OVERLOAD_S,
        "settle_s": overload.SETTLE_S,
        "rounds": OVERLOAD_ROUNDS,
    }
    finished = overload.results_of(rows, settings, machine, run.notes, run.arguments.trial)
    finished.save(output)
    print(overload_table(rows), output, sep="\n")


def _same_graph(run: Run) -> Iterator[RunningPeer]:
    return (peer for peer in run.peers if peer.candidate.group == SAME_GRAPH)


def _rate(run: Run, load: float) -> float:
    """Returns the requests per second of a load, as those of the open loops are."""
    share, rate = next(iter(run.rates.items()))
    return run.rates.get(load, round(rate / share * load, 2))


def _settings(run: Run) -> dict[str, Any]:
    arguments = run.arguments
    return {
        "model": read_arguments(arguments.serve).model[0].partition("=")[0],
        "serve": [Path(option).name for option in arguments.serve],
        "load": list(run.rates),
        "rates": list(run.rates.values()),
        "image": arguments.image.name if arguments.image else "generated",
        "generators": 1,
        "bare_batch_size": run.calibration.fastest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_peer_options(parser)
    add_run_options(parser, seconds=2.5, rounds=8, output="serving_peers.json")
    parser.add_argument("--users", default="1,4,16,32", help="of the closed loops")
    parser.add_argument("--load", default="0.3,0.5,0.8,0.9", help="over the bare graph's rate")
    parser.add_argument(
        "--context", default="1,4,0.3", help="those of --users and --load that run more rarely"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=12,
        help="of the whole run: fewer rounds if they do not fit",
    )
    parser.add_argument(
        "--reduced",
        type=Path,
        metavar="FOLDER",
        help="also an export of less precision, against what a user would write",
    )
    parser.add_argument("--neighbour", action="store_true", help="also beside a busy process")
    parser.add_argument("--overload", type=Path, metavar="FILE", help="also overload; its results")
    arguments = parser.parse_args()
    began, machine = time.perf_counter(), results.Machine.here()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # closes the servers
    with ExitStack() as stack, open_bar() as bar:
        run = prepare(stack, arguments, bar, began + arguments.minutes * 60)
        rows: list[dict[str, Any]] = []

        def save() -> None:
            settings = {
                **_settings(run),
                "users": [int(users) for users in arguments.users.split(",")],
                "seconds": arguments.seconds,
                "settle_s": min(arguments.seconds / 5, 1.0),
                "rounds": max((len(row["rounds"]) for row in rows if "rounds" in row), default=0),
            }
            notes = [*notes_on(rows, run.calibration), *run.notes]
            if requests := [row["requests"] for row in rows if row["kind"] == "load"]:
                notes.append(f"A p99 is of {min(requests)} requests or more.")
            results.finish(
                *("serving", settings, [*rows, *compare(rows)]),
                machine=machine,
                notes=notes,
                trial=arguments.trial,
            ).save(arguments.output)
            bar.console.print(f"{time.perf_counter() - began:.0f} s: wrote {arguments.output}")

        warm_up(run)
        rows += choose(run)
        run.set_rates()
        save()
        rows += measure_loads(run)
        save()
        rows += (row for row in measure_context(run) if row["kind"] == "load")
        save()
        if arguments.neighbour:
            rows += measure_beside_a_process(run)
            save()
        if arguments.overload:
            measure_overload(run, machine, arguments.overload)
        bar.console.print(f"{time.perf_counter() - began:.0f} s: the end")


def prepare(stack: ExitStack, arguments: argparse.Namespace, bar: Progress, ends: float) -> Run:
    """Starts all servers and measures the bare graph's rate."""
    running = stack.enter_context(gradcam_serve(arguments.serve))
    bar.console.print("Calibrating the bare graph, before peers start: some are busy when idle")
    config = read_arguments(arguments.serve)
    worker = stack.enter_context(Worker(BareGraph, config))
    calibration: Calibration = worker.call("calibrate")
    bare = partial(worker.call, "images_per_s", calibration.fastest)
    rate = median(bare(overload.BARE_S) for _ in range(CALIBRATION_ROUNDS))
    sent = payloads(arguments.image, running.address)
    subject = _our_server(running, config).subject(tuple(sent), (UNARY,), arguments.image, "")
    reduced = None
    if arguments.reduced:
        name = config.model[0].partition("=")[0]
        options = [*arguments.serve, "--model", f"{name}={arguments.reduced}"]
        del options[options.index("--model") : options.index("--model") + 2]
        other = stack.enter_context(gradcam_serve(options))
        server = _our_server(other, read_arguments(options))
        precision = json.loads((arguments.reduced / "gradcam.json").read_text())["precision"]
        reduced = dataclasses.replace(
            server.subject(("jpeg",), (UNARY,), arguments.image, ""),
            name=f"{subject.name}, {precision}",
        )
    peers, skipped = start_all(stack, arguments, sent, running.address, bar.console.print)
    return Run(
        arguments,
        bar,
        running,
        subject,
        reduced,
        peers,
        bare,
        calibration,
        stack.enter_context(Generators(1)),
        [rate],
        ends,
        skipped,
    )


def _our_server(running: RunningServer, config: ServeConfig) -> GradcamServer:
    return GradcamServer(
        running.address,
        Connection(),
        pid=running.pid,
        ready_s=running.ready_s,
        config=config,
    )


def _turns(subjects: Sequence[serving.Subject]) -> int:
    """Returns the turns of a round, with the bare graph's."""
    plan = serving.Plan((), (), 0.0, 0.0, rounds=1)
    return serving.count_turns(subjects, plan, with_bare=True)


def _reserved_s(run: Run) -> float:
    """Returns the seconds that the parts after the loads need."""
    servers = 1 + len(list(_same_graph(run)))
    # Before each part the cores that servers use when idle are measured for a second each.
    total = 2.0 * (1 + len(run.peers))
    total += _turns(_context_subjects(run)) * CONTEXT_ROUNDS * (CONTEXT_S + TURN_S)
    if run.arguments.neighbour:
        turns = servers * len(_neighbour_loads(run)["jpeg"]) + 1
        total += servers + turns * NEIGHBOUR_ROUNDS * (NEIGHBOUR_S + TURN_S)
    if run.arguments.overload:
        # Before each turn and after the last the bare graph; after each the server works off.
        overload_s = OVERLOAD_S + overload.BARE_S + 2.5
        total += (servers + 1) * OVERLOAD_ROUNDS * overload_s + overload.BARE_S
    return total


if __name__ == "__main__":
    main()
