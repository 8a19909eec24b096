"""Checks and measures a GPU machine: the bundle's one command. Only the standard library.

    python3 gpu-check/run.py --out OUT

The machine needs JAX with CUDA, and PyTorch for a part of it; neither a network nor TensorFlow. The
wheels that it lacks go into a temporary folder. Each part runs in a process of its own with a time
limit; OUT/gpu_check.json has all results so far after each part. Exit status: 0, or 1 if a part
failed.
"""

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

HERE = Path(__file__).resolve().parent
# The bundle's folder is the one of this file there, and this package's parent in the repository.
CODE = HERE if (HERE / "gpu_check").is_dir() else HERE.parent
sys.path.insert(0, str(CODE))

from gpu_check.table import add_price_option, bare_rate, format_results, prices_of

FORMAT = 1
_OURS = "gradcam-server"
# What a part may take beyond its share: its end may come in the middle of a row.
_GRACE_S = 15.0
# How long a part may take to close its servers after SIGTERM.
_STOP_S = 12.0
_MIN_PART_S = 15.0

_PROBE = """
import importlib.metadata, json, os, platform, sys
import jax
device = jax.devices()[0]
versions = {"python": platform.python_version()}
for name in ("jax", "torch", "numpy", "grpcio"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
is_gpu = device.platform in ("gpu", "cuda")
found = {"device": device.device_kind if is_gpu else "CPU", "cores": os.cpu_count(), **versions}
print(json.dumps({"platform": "cuda" if is_gpu else "cpu", "machine": found}))
"""
_DRAW = """
import sys
from pathlib import Path
from gpu_check.weights import draw_weights
for folder in sys.argv[2:]:
    draw_weights(Path(folder), int(sys.argv[1]))
"""


@dataclass(frozen=True)
class Step:
    """A part and how it is run.

    Attributes:
        name: Its name in the results.
        share: Its share of the time, about its seconds of eight minutes.
        module: Its module.
        options: Further options.
        has_cache: Whether it shares the compilation cache.
        platforms: The platforms on which it runs.
        environment: Further variables of its environment.
    """

    name: str
    share: float
    module: str
    options: tuple[str, ...] = ()
    has_cache: bool = True
    platforms: tuple[str, ...] = ("cuda", "cpu")
    environment: Mapping[str, str] = field(default_factory=dict)


STEPS = (
    # Its speed is not measured, and XLA's search for the fastest kernels takes most of its time.
    Step(
        *("answers", 60, "answers"),
        has_cache=False,
        environment={"XLA_FLAGS": "--xla_gpu_autotune_level=0"},
    ),
    Step("graph-bfloat16", 95, "graph", ("--precision", "bfloat16")),
    Step("torch", 70, "torch_peers"),
    Step("served", 110, "served"),
    Step("startup", 65, "startup", has_cache=False),
    Step("graph-tf32", 30, "graph", ("--precision", "tf32"), platforms=("cuda",)),
    Step("graph-float32", 30, "graph", ("--precision", "float32")),
    Step("cpu", 40, "cpu"),
)


def shares(steps: Sequence[Step], left_s: float) -> float:
    """Returns the seconds of the first of the steps that are still to run.

    What a step does not use goes to those after it.
    """
    return left_s * steps[0].share / sum(step.share for step in steps)


def missing_wheels(folder: Path, python: tuple[int, int]) -> list[Path]:
    """Returns the wheels to unpack: our own, and those of packages that are not installed.

    Args:
        folder: The wheels.
        python: The version of Python; wheels for others are left out.
    """
    found = []
    for path in sorted(folder.glob("*.whl")):
        name, _, *_, python_tag, abi_tag, _ = path.stem.split("-")
        name = re.sub(r"[-_.]+", "-", name).lower()
        if _fits(python_tag, abi_tag, python) and (name == _OURS or not _is_installed(name)):
            found.append(path)
    return found


def _fits(python_tag: str, abi_tag: str, python: tuple[int, int]) -> bool:
    """Whether a wheel of these tags is for a version of Python."""
    for tag in python_tag.split("."):
        if tag in {"py3", f"py{python[0]}{python[1]}", f"cp{python[0]}{python[1]}"}:
            return True
        oldest = re.fullmatch(r"cp3(\d+)", tag)
        if oldest and "abi3" in abi_tag.split(".") and int(oldest[1]) <= python[1]:
            return True
    return False


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def unpack(wheels: Sequence[Path], folder: Path) -> None:
    """Unpacks wheels, which need no installation: neither pip nor rights are needed."""
    for path in wheels:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)


class Check:
    """One run of the check.

    Args:
        bundle: The bundle's folder.
        out: The folder of the results.
        minutes: The time limit of all parts together.
        environment: The environment of the parts.
        scratch: A temporary folder.
        prices: Euro per hour of the machines, by ``gpu`` and ``cpu``.
    """

    def __init__(
        self,
        bundle: Path,
        out: Path,
        minutes: float,
        environment: Mapping[str, str],
        scratch: Path,
        prices: Mapping[str, float],
    ) -> None:
        self._bundle, self._out, self._scratch = bundle, out, scratch
        self._ends = monotonic() + minutes * 60
        self._environment = environment
        self.results: dict[str, Any] = {
            "format": FORMAT,
            "bundle": json.loads((bundle / "bundle.json").read_text("utf-8")),
            "minutes": minutes,
            "prices": dict(prices),
            "parts": {},
        }

    @property
    def has_failed(self) -> bool:
        """Whether a part ended with an error, or an answer was wrong."""
        parts = self.results["parts"].values()
        wrong = any(row.get("ok") is False for part in parts for row in part["rows"])
        return wrong or any(part["status"].startswith("failed") for part in parts)

    def probe(self, platform: str | None) -> None:
        """Finds the device.

        Raises:
            SystemExit: JAX cannot be imported, or there is no GPU although one was asked for.
        """
        run = self._python(["-c", _PROBE])
        if run.returncode:
            sys.exit(f"run.py: JAX cannot be used by {sys.executable}:\n{run.stderr[-1500:]}")
        self.results.update(json.loads(run.stdout.splitlines()[-1]))
        if platform and self.results["platform"] != platform:
            sys.exit(
                f"run.py: --platform {platform}: JAX has only {self.results['machine']['device']} "
                "here; leave the option out to check on it"
            )

    def draw_weights(self) -> None:
        """Writes the weights that the bundle leaves out.

        Raises:
            SystemExit: They cannot be written.
        """
        folders = sorted(self._bundle.glob("resnet50-*"))
        missing = [str(path) for path in folders if not (path / "weights.safetensors").exists()]
        if not missing:
            return
        run = self._python(["-c", _DRAW, str(self.results["bundle"].get("seed", 0)), *missing])
        if run.returncode:
            sys.exit(f"run.py: the weights cannot be drawn:\n{run.stderr[-1500:]}")

    def run(self, only: Sequence[str] = ()) -> None:
        """Runs the parts, or only some."""
        platform = self.results["platform"]
        steps = [
            step for step in STEPS if platform in step.platforms and (not only or step.name in only)
        ]
        while steps:
            left_s = self._ends - monotonic() - _STOP_S
            seconds = shares(steps, left_s)
            step = steps.pop(0)
            if left_s < _MIN_PART_S:
                found = {"status": "skipped: no time was left", "seconds": 0.0}
                self.results["parts"][step.name] = {**found, "rows": [], "notes": []}
            else:
                self._run_part(step, seconds, left_s)
            self.save()

    def save(self) -> None:
        """Writes OUT/gpu_check.json."""
        path = self._out / "gpu_check.json"
        path.with_suffix(".new").write_text(json.dumps(self.results, indent=1) + "\n", "utf-8")
        path.with_suffix(".new").replace(path)

    def _run_part(self, step: Step, seconds: float, left_s: float) -> None:
        out, log = self._out / f"{step.name}.json", self._out / f"{step.name}.log"
        out.unlink(missing_ok=True)
        command = [sys.executable, "-m", f"gpu_check.{step.module}", *self._options(step)]
        command += ["--seconds", f"{seconds:.0f}", "--out", str(out)]
        print(f"{step.name}: up to {seconds:.0f} s", flush=True)
        began = monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**self._environment, **step.environment},
                cwd=self._scratch,
            )
            status = _wait(process, min(seconds + _GRACE_S, left_s))
        if status == "failed":
            lines = log.read_text("utf-8", "replace").strip().splitlines()
            status = f"failed: {lines[-1][:300] if lines else process.returncode}"
        found = {"status": status, "seconds": round(monotonic() - began, 1)}
        self.results["parts"][step.name] = {**found, **_read(out)}
        print(f"  {status}, {found['seconds']} s", flush=True)

    def _options(self, step: Step) -> Iterator[str]:
        yield from step.options
        yield from ("--bundle", str(self._bundle), "--platform", self.results["platform"])
        if step.has_cache:
            yield from ("--cache", str(self._scratch / "cache"))
        if step.name == "served" and (bare := bare_rate(self.results)):
            yield from ("--bare", str(bare))
        if step.name == "cpu" and self.results["platform"] == "cpu":
            yield "--short"

    def _python(self, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=dict(self._environment),
            cwd=self._scratch,
        )


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """Waits for a part; ends it, and all that it has started, when its time is over."""
    try:
        return "failed" if process.wait(seconds) else "done"
    except subprocess.TimeoutExpired:
        family = descendants(process.pid)
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid, started in family.items():
            if _started(pid) == started:
                os.kill(pid, signal.SIGKILL)
        return f"stopped after {seconds:.0f} s"


def descendants(pid: int) -> dict[int, str]:
    """Returns the processes that a process has started, and those that these have started.

    Returns:
        Their start times by process id: an id is used again.
    """
    parents: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (fields := _stat(int(path.name))):
            parents[int(path.name)] = int(fields[1])
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        children = [child for child, of_child in parents.items() if of_child == parent]
        found.update({child: _started(child) for child in children})
        waiting += children
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent and so on; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if fields else ""


def _read(out: Path) -> dict[str, Any]:
    """Reads what a part has written; nothing, if it had not begun to write."""
    if not out.exists():
        return {"rows": [], "notes": []}
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


def _environment(site: Path, code: Path, platform: str | None) -> dict[str, str]:
    paths = [str(site), str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # PyTorch shares the card.
    found["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if platform == "cpu":
        found["JAX_PLATFORMS"] = "cpu"
    return found


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-check-results"))
    parser.add_argument("--minutes", type=float, default=8.0, help="the time limit (default 8)")
    parser.add_argument("--platform", choices=["cuda", "cpu"], help="the default is a GPU if any")
    parser.add_argument("--bundle", type=Path, default=HERE, help="the default is this folder")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[step.name for step in STEPS],
        help="run this part; repeat for several",
    )
    add_price_option(parser)
    arguments = parser.parse_args(given)
    bundle = arguments.bundle.resolve()
    if not (bundle / "bundle.json").is_file():
        parser.error(f"{bundle} is not a bundle: it has no bundle.json; make one by make gpu-check")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        site = Path(scratch, "site")
        site.mkdir()
        environment = _environment(site, CODE, arguments.platform)
        check = Check(
            *(bundle, arguments.out.resolve(), arguments.minutes),
            *(environment, Path(scratch), prices_of(arguments)),
        )
        unpack(missing_wheels(bundle / "wheels", sys.version_info[:2]), site)
        check.probe(arguments.platform)
        check.draw_weights()
        check.run(arguments.only)
        check.save()
    text = format_results(check.results)
    (arguments.out / "gpu_check.txt").write_text(text + "\n", "utf-8")
    print(text)
    return int(check.has_failed)


if __name__ == "__main__":
    sys.exit(main())
