"""Runs the serving suite: adds clients, rates and notes to ``serving.measure``."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from gradcam_server.bench import results, serving
from gradcam_server.bench.bare import BareGraph, Calibration
from gradcam_server.bench.load import Closed, Generators, MakeLoadClient
from gradcam_server.bench.load_clients import Connection, Stream, Unary
from gradcam_server.bench.payload import request
from gradcam_server.bench.worker import Worker

if TYPE_CHECKING:
    from gradcam_server.config.settings import ServeConfig

_CALLS = {"unary": Unary, "stream": Stream}


@dataclass(frozen=True)
class GradcamServer:
    """A gradcam server to measure.

    Attributes:
        address: HOST:PORT.
        connection: TLS and token.
        pid: Its first process, if it is on this machine.
        ready_s: Seconds from its start until SERVING, if the benchmark started it.
        config: Its settings, if the benchmark started it: the bare graph is measured beside it.
    """

    address: str
    connection: Connection
    pid: int | None = None
    ready_s: float | None = None
    config: "ServeConfig | None" = None

    def subject(
        self, payloads: Sequence[str], calls: Sequence[str], image: Path | None, model: str
    ) -> serving.Subject:
        """Returns the subject: the server with its load clients.

        Raises:
            GradCamError: The server does not answer.
            OSError: The image cannot be read.
        """
        with self.connection.client(self.address) as client:
            info = client.get_model(model)
        size = info.input_height, info.input_width
        clients: dict[tuple[str, str], MakeLoadClient] = {}
        for payload, call in itertools.product(payloads, calls):
            message = request(payload, image, size, model)
            clients[payload, call] = _CALLS[call](self.address, message, self.connection)
        return serving.Subject(results.SERVER, clients, self.pid, self.ready_s)


def run(
    server: GradcamServer,
    bar: Progress,
    *,
    model: str = "",
    image: Path | None = None,
    payloads: Sequence[str] = ("jpeg", "raw"),
    calls: Sequence[str] = ("unary", "stream"),
    users: tuple[int, ...] = (1, 4, 16),
    load: tuple[float, ...] = (0.5, 0.8),
    rates: tuple[float, ...] | None = None,
    seconds: float = 10.0,
    rounds: int = 3,
    generators: int = 1,
    trial: bool = False,
) -> results.Results:
    """Measures a gradcam server.

    Args:
        server: The gradcam server.
        bar: Shows the progress.
        model: The model's name in requests; empty is the server's first.
        image: The image to send; None generates an image.
        payloads: ``jpeg`` and ``raw``.
        calls: ``unary`` and ``stream``.
        users: Numbers of users of the closed loops.
        load: Rates of the open loops, as shares of the bare graph's throughput.
        rates: Rates of the open loops in requests per second; they replace ``load``.
        seconds: Duration of each phase.
        rounds: How often each phase runs.
        generators: Number of processes that generate load.
        trial: Whether the figures are not meant to be quoted.

    Raises:
        GradCamError: The server does not answer.
        WorkerError: A generator or the bare graph failed.
    """
    machine = results.Machine.here()
    settle_s = min(seconds / 5, 1.0)
    with ExitStack() as stack:
        subject = server.subject(payloads, calls, image, model)
        processes = stack.enter_context(Generators(generators))
        bare: Callable[[], float] | None = None
        calibration = None
        if server.config:
            bar.console.print("Compiling and calibrating the bare graph")
            worker = stack.enter_context(Worker(BareGraph, server.config))
            calibration = worker.call("calibrate")
            bare = partial(worker.call, "images_per_s", calibration.fastest, seconds)
        if rates is None:
            capacity = bare() if bare else _saturation(processes, subject, max(users), seconds)
            rates = tuple(round(share * capacity, 2) for share in load)
        plan = serving.Plan(users, rates, seconds, settle_s, rounds)
        subjects = [subject]
        count = serving.count_turns(subjects, plan, bare is not None)
        task = bar.add_task("", total=count)

        def on_turn(name: str) -> None:
            bar.update(task, description=name)
            bar.advance(task)

        rows = serving.measure(subjects, plan, processes, bare, calibration, on_turn)
    settings = {
        "model": server.config.model[0] if server.config else model,
        "users": users,
        "rates": rates,
        "seconds": seconds,
        "settle_s": settle_s,
        "rounds": rounds,
        "generators": generators,
        "image": image.name if image else "generated",
    }
    notes = notes_on(rows, calibration)
    return results.finish("serving", settings, rows, machine=machine, notes=notes, trial=trial)


def _saturation(
    generators: Generators, subject: serving.Subject, users: int, seconds: float
) -> float:
    make = next(iter(subject.clients.values()))
    return generators.run(make, Closed(users, seconds), seconds / 5).images_per_s


def notes_on(rows: Sequence[dict[str, Any]], calibration: Calibration | None) -> list[str]:
    """Returns sentences that a reader needs to judge the rows of ``serving.measure``."""
    notes = ["Servers, load generators and the bare graph share the same cores."]
    if calibration is None:
        notes.append("No bare graph was measured, so there is no efficiency.")
    idle = {row["server"]: row["idle_cores"] or 0.0 for row in rows if row["kind"] == "server"}
    if restless := {name: cores for name, cores in idle.items() if cores > serving.RESTLESS_CORES}:
        used = ", ".join(f"{name} {cores:.2f}" for name, cores in restless.items())
        notes.append(
            f"Servers that use cores when idle ({used}) were suspended in the turns of the others."
        )
    for row in rows:
        if row["kind"] == "load" and row["generator"]["bottleneck"]:
            shape = f"{row['users']} users" if row["users"] else f"{row['requests_per_s']}/s"
            where = f"{row['server']}, {row['payload']}, {row['call']}, {shape}"
            notes.append(f"{where}: {row['generator']['bottleneck']}, which the latencies include.")
    return notes
