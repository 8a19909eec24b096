"""Runs the graph suite: adds candidates, rooflines, prices and notes to ``graph.measure``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.progress import Progress

from gradcam_server.bench import graph, results
from gradcam_server.bench.roofline import Roofline, Speed, Work, fastest, roofline_ms
from gradcam_server.bench.subjects import reference_subject, server_subjects, tutorial_subjects
from gradcam_server.bench.worker import Worker
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Compiler

MorePeers = Callable[[str], Sequence[graph.Candidate]]
"""Returns more candidates for a device, ``cpu`` or ``gpu``."""


def run(
    bar: Progress,
    *,
    model: str,
    weights: str = "random",
    compilers: Sequence[str] = ("xla", "tensorflow"),
    devices: Sequence[str] = ("cpu",),
    batch_sizes: Sequence[int] = (1, 8),
    rounds: int = 10,
    prices: Mapping[str, float] | None = None,
    trial: bool = False,
    tutorials: bool = True,
    more: MorePeers = lambda _: (),
    skipped: Sequence[str] = (),
) -> results.Results:
    """Measures the server's graphs, the tutorials' implementations, and others beside them.

    Args:
        bar: Shows the progress.
        model: A built-in model.
        weights: ``imagenet`` or ``random``.
        compilers: Compilers of the server's graph.
        devices: ``cpu`` and ``gpu``.
        batch_sizes: Batch sizes.
        rounds: Number of measurements of each candidate.
        prices: Price of an hour of each device's machine.
        trial: Whether the figures are not meant to be quoted.
        tutorials: Whether to measure the tutorials' implementations.
        more: Returns more candidates for a device.
        skipped: Sentences about candidates that could not take part.

    Raises:
        WorkerError: The reference failed, or there is no such device.
    """
    machine = results.Machine.here()
    spec = ModelSpec(model, model, weights=weights)
    candidates: list[graph.Candidate] = []
    rooflines: dict[str, Any] = {}
    task = bar.add_task("", total=None)

    def on_step(name: str) -> None:
        bar.update(task, description=name)
        bar.advance(task)

    for device in devices:
        on_step(f"measuring the roofline of the {device}")
        with _roofline(spec, device) as worker:
            work, input_size = worker.call("describe")
            rooflines[device] = worker.call("speed")
        candidates += server_subjects(spec, [Compiler(name) for name in compilers], device)
        candidates += more(device)
        candidates += tutorial_subjects(spec, device) if tutorials else ()
    rows = graph.measure(
        candidates,
        reference_subject(spec),
        batch_sizes,
        input_size,
        rounds=rounds,
        on_step=on_step,
    )
    for device in devices:
        on_step(f"measuring the roofline of the {device} again")
        with _roofline(spec, device) as worker:
            rooflines[device] = fastest(rooflines[device], worker.call("speed"))
    outrun = _outrun(rows, work, rooflines)
    for row in rows:
        row["roofline_ms"] = roofline_ms(work, rooflines[row["device"]], row["batch_size"])
        price = (prices or {}).get(row["device"])
        if price is not None and "ms_per_image" in row:
            row["cost_per_million"] = price / 3600 * row["ms_per_image"]["median"] * 1e3
    settings = {
        "model": model,
        "weights": weights,
        "batch_sizes": list(batch_sizes),
        "rounds": rounds,
        "work": asdict(work),
        "speed": {device: asdict(speed) for device, speed in rooflines.items()},
        "price_per_hour": dict(prices or {}),
    }
    notes = [*_notes(rows), *outrun, *skipped]
    return results.finish("graph", settings, rows, machine=machine, notes=notes, trial=trial)


def _roofline(spec: ModelSpec, device: str) -> Worker:
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {}
    return Worker(Roofline, spec, device, environment=hidden)


def _outrun(
    rows: Sequence[Mapping[str, Any]], work: Work, rooflines: dict[str, Speed]
) -> list[str]:
    """Raises a device's speed to that of the fastest float32 subject; returns a note about it.

    Other processes may have used the cores while the matrix product was measured.
    """
    notes = []
    for row in rows:
        if not row["exact"] or "ms_per_image" not in row:
            continue
        reached = Speed(work.flop / row["ms_per_image"]["low"] * 1e3, 0.0)
        if reached.flop_per_s > rooflines[row["device"]].flop_per_s:
            rooflines[row["device"]] = fastest(rooflines[row["device"]], reached)
            notes.append(
                f"{row['subject']} was faster than the matrix product behind the roofline of the "
                f"{row['device']}; its speed is the roofline now."
            )
    return notes[-1:]


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    for row in rows:
        where = f"{row['subject']}, {row['device']}, batch size {row['batch_size']}"
        if row["failure"]:
            notes.append(f"{where}: failed: {row['failure']}")
        elif not row["check"]["passed"]:
            found = row["check"]
            notes.append(
                f"{where}: its answer is wrong, so it was not timed: logits differ by "
                f"{found['logits_error']:.1e}, maps by {found['map_error']:.1e}, minimum "
                f"correlation {found['map_correlation']:.3f}, same class {found['same_class']:.0%}"
            )
    return notes
