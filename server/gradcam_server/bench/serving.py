"""The serving suite: servers under closed and open load, beside the bare graph.

The phases of all servers and loads take turns with the bare graph. The efficiency of a phase is its
throughput over that of the bare graph in the same round.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gradcam_server.bench.bare import Calibration
from gradcam_server.bench.interleave import interleave
from gradcam_server.bench.load import (
    Closed,
    Generators,
    Load,
    MakeLoadClient,
    Open,
    Records,
    merge,
)
from gradcam_server.bench.running import cpu_by_part, memory_mib, stopped
from gradcam_server.bench.statistics import MIN_BEYOND, Spread, latency_ms
from gradcam_server.bench.worker import WorkerError

BARE = "bare graph"
# A server that uses more cores when idle is suspended in the turns of the others.
RESTLESS_CORES = 0.02


@dataclass(frozen=True)
class Subject:
    """A server under test.

    Attributes:
        name: Its name.
        clients: Makers of its load clients, by (payload, call).
        pid: Its first process, if it is on this machine.
        ready_s: Seconds from its start until it was ready, if the benchmark started it.
        group: What it is compared for (see ``comparison``); empty is the server itself.
        loads: Loads by (payload, call) that replace the plan's.
    """

    name: str
    clients: Mapping[tuple[str, str], MakeLoadClient]
    pid: int | None = None
    ready_s: float | None = None
    group: str = ""
    loads: Mapping[tuple[str, str], Sequence[Load]] | None = None


@dataclass(frozen=True)
class Plan:
    """The loads to generate.

    Attributes:
        concurrency: Numbers of users of the closed loops, for every payload and call.
        rates: Requests per second of the open loops, for the first payload and call only.
        seconds: Duration of a phase.
        settle_s: Seconds at its beginning that are not measured.
        rounds: How often each phase runs.
        seed: Seed of orders and arrival times.
        within_s: Seconds in which all rounds should end; fewer run if they do not fit.
        min_beyond: The least number of requests above a percentile.
    """

    concurrency: tuple[int, ...]
    rates: tuple[float, ...]
    seconds: float
    settle_s: float
    rounds: int
    seed: int = 0
    within_s: float = math.inf
    min_beyond: int = MIN_BEYOND


@dataclass
class _Phase:
    """One load on one subject, in all rounds."""

    subject: Subject
    payload: str
    call: str
    load: Load
    make: MakeLoadClient
    records: list[Records] = field(default_factory=list)
    cpu: list[dict[str, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        shape = (
            f"closed, {self.load.concurrency} users"
            if isinstance(self.load, Closed)
            else f"open, {self.load.rate:.0f}/s"
        )
        return f"{self.subject.name}: {self.payload}, {self.call}, {shape}"

    def run(self, generators: Generators, settle_s: float) -> None:
        if isinstance(self.load, Open):  # new times in every round
            self.load = Open(self.load.rate, self.load.seconds, self.load.seed + 1)
        before = self._cpu()
        try:
            record = generators.run(self.make, self.load, settle_s)
        except WorkerError:  # the server is gone; the other measurements are kept
            record = Records(
                self.load.seconds - settle_s, requests=1, failures=Counter(unreachable=1)
            )
        after = self._cpu()
        self.cpu.append({part: after[part] - before[part] for part in before})
        self.records.append(record)

    def _cpu(self) -> dict[str, float]:
        return cpu_by_part(self.subject.pid) if self.subject.pid else {}


def measure(
    subjects: Sequence[Subject],
    plan: Plan,
    generators: Generators,
    bare: Callable[[], float] | None = None,
    calibration: Calibration | None = None,
    on_turn: Callable[[str], object] = lambda _: None,
) -> list[dict[str, Any]]:
    """Runs all phases, interleaved.

    Args:
        subjects: The servers. All run during the whole run; a server that uses cores when idle is
            suspended in the turns of the others.
        plan: The loads.
        generators: The load generators.
        bare: Measures the bare graph; returns images per second.
        calibration: The cost of the bare graph's batches.
        on_turn: Called with the name before each phase.

    Returns:
        One row for each phase, and one for the bare graph.
    """
    phases = {phase.name: phase for phase in _phases(subjects, plan)}
    idle = {subject.name: _idle_cores(subject) for subject in subjects}
    restless = {
        subject.name: subject.pid
        for subject in subjects
        if subject.pid and (idle[subject.name] or 0.0) > RESTLESS_CORES
    }
    turns: dict[str, Callable[[], float]] = {
        name: _runner(phase, generators, plan.settle_s, restless) for name, phase in phases.items()
    }
    if bare is not None:
        turns[BARE] = _beside(restless.values(), bare)
    found = interleave(turns, plan.rounds, plan.seed, on_turn, plan.within_s)
    bases = found.pop(BARE, None)
    rows = [
        _row(phase, found[name], bases, calibration, plan.min_beyond)
        for name, phase in phases.items()
    ]
    rows += [
        {
            "kind": "server",
            "server": subject.name,
            "ready_s": subject.ready_s,
            "memory_mib": memory_mib(subject.pid) if subject.pid else None,
            "idle_cores": idle[subject.name],
        }
        for subject in subjects
    ]
    if bases and calibration:
        row = {"kind": "bare", "images_per_s": asdict(Spread.of(bases))}
        rows.append({**row, "batch_size": calibration.fastest, "compiler": calibration.compiler})
    return rows


def count_turns(subjects: Sequence[Subject], plan: Plan, with_bare: bool) -> int:
    """Returns the number of calls of ``on_turn`` by ``measure``."""
    return (len(list(_phases(subjects, plan))) + with_bare) * plan.rounds


def _phases(subjects: Sequence[Subject], plan: Plan) -> list[_Phase]:
    found = []
    for subject in subjects:
        for number, (key, make) in enumerate(subject.clients.items()):
            if subject.loads is not None:
                loads: Iterable[Load] = subject.loads.get(key, ())
            else:
                rates = plan.rates if number == 0 else ()
                loads = itertools.chain(
                    (Closed(users, plan.seconds) for users in plan.concurrency),
                    (Open(rate, plan.seconds, plan.seed) for rate in rates),
                )
            found += [_Phase(subject, *key, load, make) for load in loads]
    return found


def _runner(
    phase: _Phase, generators: Generators, settle_s: float, restless: Mapping[str, int]
) -> Callable[[], float]:
    def run() -> float:
        phase.run(generators, settle_s)
        return phase.records[-1].images_per_s

    others = [pid for name, pid in restless.items() if name != phase.subject.name]
    return _beside(others, run)


def _beside(restless: Iterable[int], run: Callable[[], float]) -> Callable[[], float]:
    """Suspends ``restless`` servers while ``run`` runs, so that they use none of its cores."""

    def alone() -> float:
        with stopped(restless):
            return run()

    return alone


def _idle_cores(subject: Subject, seconds: float = 1.0) -> float | None:
    """Returns the CPU time per second of an idle server, in cores."""
    if not subject.pid:
        return None
    before = sum(cpu_by_part(subject.pid).values())
    time.sleep(seconds)
    return (sum(cpu_by_part(subject.pid).values()) - before) / seconds


def _row(
    phase: _Phase,
    rates: list[float],
    bases: list[float] | None,
    calibration: Calibration | None,
    min_beyond: int,
) -> dict[str, Any]:
    records = merge(phase.records, parallel=False)
    answers = max(len(records.latencies_s), 1)
    closed = isinstance(phase.load, Closed)
    batches = records.batches.total()
    return {
        "kind": "load",
        "server": phase.subject.name,
        "group": phase.subject.group,
        "payload": phase.payload,
        "call": phase.call,
        "loop": "closed" if closed else "open",
        "users": phase.load.concurrency if isinstance(phase.load, Closed) else None,
        "requests_per_s": phase.load.rate if isinstance(phase.load, Open) else None,
        "images_per_s": asdict(Spread.of(rates)),
        "efficiency": asdict(Spread.of_ratios(rates, bases)) if bases else None,
        "latency_ms": latency_ms(records.latencies_s, min_beyond),
        "rounds": [_round(record) for record in phase.records],
        "requests": records.requests,
        "failures": dict(records.failures),
        "stages_ms": {
            name.removesuffix("_us"): total / answers / 1e3
            for name, total in records.stages_us.items()
        },
        "mean_batch_size": (
            sum(size * count for (size, _), count in records.batches.items()) / batches
            if batches
            else None
        ),
        "cpu": _cpu(phase, records, calibration),
        "generator": {
            "cores": max(records.cpu_shares, default=0.0),
            "lag_p99_ms": latency_ms(records.lags_s)["p99"],
            "bottleneck": records.bottleneck,
        },
    }


def _round(records: Records) -> dict[str, float | None]:
    latency = latency_ms(records.latencies_s, min_beyond=0)
    return {
        "images_per_s": records.images_per_s,
        "p50_ms": latency["p50"],
        "p99_ms": latency["p99"],
    }


def _cpu(
    phase: _Phase, records: Records, calibration: Calibration | None
) -> dict[str, float | None]:
    """Returns the server's CPU milliseconds per request, and those outside of batches."""
    requests = records.all_answered  # the CPU time is that of the whole phase
    if not requests or not phase.subject.pid:
        return {"server_ms": None, "front_end_ms": None, "outside_graph_ms": None}
    spent = {part: sum(used[part] for used in phase.cpu) for part in phase.cpu[0]}
    total = sum(spent.values()) / requests * 1e3
    outside = None
    if calibration and records.batches:
        graph_s = sum(
            count * calibration.cpu_s[padded] / size
            for (size, padded), count in records.batches.items()
            if padded in calibration.cpu_s
        )
        outside = total - graph_s / records.batches.total() * 1e3
    return {
        "server_ms": total,
        "front_end_ms": spent["front_end"] / requests * 1e3,
        "outside_graph_ms": outside,
    }
