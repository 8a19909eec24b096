"""From the start of ``gradcam serve`` to SERVING: where the time goes.

Servers start and stop one after the other; with ``--before`` those of another checkout take turns
with ours. The first round fills the page cache and Python's cache of compiled modules, and is left
out. The moments of the steps are those of the log, in milliseconds since the process was started.

Usage: python benchmarks/startup.py [--rounds N] [--before CHECKOUT] [--output FILE] -- OPTIONS
       python benchmarks/startup.py -- --model resnet50=EXPORT --batch-sizes 1,2,4,8,16
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from gradcam_server.bench.results import Machine, finish
from gradcam_server.bench.running import RunningServer, cpu_by_part

HERE = Path(__file__).resolve().parent
PROGRAM = "from gradcam_server.cli import main; main()"

STEPS = {
    "settings read": r"Read the settings",
    "front end imported": r"Imported the front end",
    "port bound": r"Listening on \S+; warming up",
    "engine imported": r"The engine has read the settings",
    "files checked": r"Checked the files of the graphs of .*",
    "graphs read": r"Read the graphs of .*",
    "graphs compiled": r"Compiled graph \d+",
    "graphs run": r"Read .* and compiled it in .*",
    "serving": r"Serving .*",
}
"""The lines of the log, at the level debug, by what has just ended."""

_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) [A-Z]+ \S+: (.*)$", re.MULTILINE)


def read_steps(log: str, started: float) -> dict[str, float]:
    """Returns when each step ended, of those in the log; the last line of a step counts.

    Args:
        log: The log, as text.
        started: When the process was started, in seconds since 1970.

    Returns:
        Milliseconds since the start, by step.
    """
    found = {}
    for moment, message in _LINE.findall(log):
        for step, pattern in STEPS.items():
            if re.fullmatch(pattern, message):
                at = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f").timestamp()
                found[step] = round((at - started) * 1e3, 1)
    return found


def start(options: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Starts a server and ends it once it is SERVING.

    Returns:
        Milliseconds to the end of each step, and the CPU seconds of both processes by then.
    """
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", "--log-level", "debug"]
    started = time.time()
    with RunningServer([*command, *options], _is_serving, environment) as server:
        cpu = {part: round(seconds, 2) for part, seconds in cpu_by_part(server.pid).items()}
        return {"ms": read_steps(server.text, started), "cpu_s": cpu}


def _is_serving(log: str) -> str | None:
    return next((text for _, text in _LINE.findall(log) if text.startswith("Serving ")), None)


def packages_of(checkout: Path) -> str:
    """Returns the PYTHONPATH that puts the packages of a checkout before installed ones."""
    return os.pathsep.join(str(checkout / name) for name in ("server", "client"))


def measure(
    checkouts: Mapping[str, Path], options: Sequence[str], rounds: int
) -> Iterator[dict[str, Any]]:
    """Yields a row for each start, and then one of quartiles for each checkout."""
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for number in track(range(1 + rounds), description="starts"):
            for name, checkout in checkouts.items():
                environment = {
                    "PYTHONPATH": packages_of(checkout),
                    # An installed server has compiled modules.
                    "PYTHONDONTWRITEBYTECODE": "",
                    "PYTHONPYCACHEPREFIX": str(Path(folder) / name),
                }
                row = start(options, environment)
                if number:
                    kept[name].append(row)
                    yield {"kind": "start", "code": name, "round": number, **row}
    for name, rows in kept.items():
        yield {
            "kind": "quartiles",
            "code": name,
            **{
                column: {
                    key: quartiles([row[column][key] for row in rows]) for key in rows[0][column]
                }
                for column in ("ms", "cpu_s")
            },
        }


def quartiles(values: Sequence[float]) -> list[float]:
    """Returns the quartiles, to two decimals."""
    return [round(float(value), 2) for value in np.percentile(values, [25, 50, 75])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--output", type=Path)
    parser.add_argument("options", nargs="+", help="options of gradcam serve")
    arguments = parser.parse_args()
    machine = Machine.here()
    checkouts = {"before": arguments.before} if arguments.before else {}
    checkouts["here"] = HERE.parent
    rows = list(measure(checkouts, arguments.options, arguments.rounds))
    for row in rows:
        if row["kind"] == "quartiles":
            print(row["code"], "CPU seconds", row["cpu_s"])
            for step, values in sorted(row["ms"].items(), key=lambda item: item[1][1]):
                print(f"  {step:20s} {values[1]:7.0f} ms ({values[0]:.0f} to {values[2]:.0f})")
    if arguments.output:
        settings = {"rounds": arguments.rounds}
        finish("startup", settings, rows, machine=machine).save(arguments.output)


if __name__ == "__main__":
    main()
