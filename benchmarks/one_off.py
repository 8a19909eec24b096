"""Compares the time of ``gradcam explain`` for one photograph with a script's (eager tape).

Both are whole processes: they import TensorFlow, load the same model and explain the same classes
by the same methods. ``compare`` also draws its picture. They run in turns, and each round gives
one ratio, so that noise of the machine affects both; the figures are quartiles.

Usage: python benchmarks/one_off.py [--model M] [--rounds N] [--output FILE]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from gradcam_server.domain.registry import ONE_PASS_METHODS, differentiated_as
from gradcam_server.domain.requests import Method

HERE = Path(__file__).resolve().parent
IMAGE = HERE.parent / "examples" / "images" / "cat.jpg"
COMPARED_CLASSES = 3
# Methods that need the gradient of a class's score.
METHODS = [method for method in ONE_PASS_METHODS if differentiated_as(method) is Method.GRAD_CAM]


def commands(model: str, folder: Path) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """Returns the command lines of gradcam and of the script, by gradcam's command."""
    weights = "imagenet" if model == "efficientnet-lite0" else "random"
    gradcam = [str(Path(sys.executable).with_name("gradcam"))]
    where = ["--model", model, "--weights", weights]
    eager = [sys.executable, str(HERE / "peers" / "eager.py"), str(IMAGE), model]
    chosen = [word for method in METHODS for word in ("--method", method)]
    picture = str(folder / "compare.png")
    return {
        "explain": (
            [*gradcam, "explain", str(IMAGE), *where],
            [*eager, "1", "gradcam"],
        ),
        "compare": (
            [*gradcam, "compare", str(IMAGE), "-o", picture, *where, *chosen],
            [*eager, str(COMPARED_CLASSES), *METHODS],
        ),
    }


def run(command: Sequence[str], cache: Path) -> tuple[float, float]:
    """Runs a process; returns its wall-clock time and its CPU time in seconds."""
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XDG_CACHE_HOME": str(cache),  # an empty timing cache
    }
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def quartiles(values: Any) -> list[float]:
    """Returns the quartiles, to three decimals."""
    return [round(float(value), 3) for value in np.percentile(values, [25, 50, 75])]


def measure(gradcam: Sequence[str], eager: Sequence[str], rounds: int, name: str) -> dict[str, Any]:
    """Runs both in turns; the first round, which fills the page cache, is left out."""
    with tempfile.TemporaryDirectory() as cache:
        found = np.array(
            [
                [run(gradcam, Path(cache)), run(eager, Path(cache))]
                for _ in track(range(1 + rounds), description=name)
            ]
        )[1:]
    wall_s, cpu_s = found[..., 0], found[..., 1]
    return {
        "rounds": rounds,
        "wall_s_quartiles": {"gradcam": quartiles(wall_s[:, 0]), "eager": quartiles(wall_s[:, 1])},
        "cpu_s_quartiles": {"gradcam": quartiles(cpu_s[:, 0]), "eager": quartiles(cpu_s[:, 1])},
        "wall_ratio_quartiles": quartiles(wall_s[:, 0] / wall_s[:, 1]),
        "cpu_ratio_quartiles": quartiles(cpu_s[:, 0] / cpu_s[:, 1]),
    }


def _tensorflow_version() -> str:
    for package in ("tensorflow", "tensorflow-cpu"):
        with suppress(PackageNotFoundError):
            return version(package)
    raise SystemExit("TensorFlow is not installed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="efficientnet-lite0", choices=("efficientnet-lite0", "resnet50")
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {
            name: measure(*both, arguments.rounds, name)
            for name, both in commands(arguments.model, Path(folder)).items()
        }
    report = {
        "model": arguments.model,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"tensorflow": _tensorflow_version(), "keras": version("keras")},
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
