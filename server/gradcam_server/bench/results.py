"""The schema of the JSON files of results: rows, machine, versions, date and command."""

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradcam_server.telemetry.versions import installed_versions

SCHEMA = 2
SERVER = "gradcam-server"
"""The name in rows of the server that others are compared with."""
_PACKAGES = (
    *("gradcam-server", "tensorflow", "tensorflow-cpu", "keras", "openvino", "nncf", "jax"),
    *("torch", "onnxruntime", "onnxruntime-gpu", "grpcio", "numpy", "opencv-python-headless"),
    *("litserve", "mosec", "ray", "nvidia-pytriton"),
)

_ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:[^/\s=,]+/)+")


class ResultsError(ValueError):
    """A file does not hold results of gradcam bench."""


@dataclass(frozen=True)
class Machine:
    """The machine of a benchmark.

    Attributes:
        processor: Name of the processor.
        cores: Number of cores that this process may use.
        memory_gib: Memory of the machine in GiB.
        gpus: Names of the NVIDIA GPUs.
        system: Operating system and kernel.
        load_before: Load average of the minute before: above 0.5, other processes were active.
    """

    processor: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]
    system: str
    load_before: float

    @classmethod
    def here(cls) -> "Machine":
        """Describes this machine."""
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(pages / 2**30, 1),
            gpus=_gpus(),
            system=f"{platform.system()} {platform.release()}",
            load_before=round(os.getloadavg()[0], 2),
        )


@dataclass(frozen=True)
class Results:
    """One run of one suite.

    Attributes:
        suite: The suite: graph, serving, or the name of another benchmark.
        settings: Settings of the run.
        rows: The measurements, each a flat or nested JSON object.
        notes: Sentences that a reader needs to judge the measurements.
        trial: Whether the figures are not meant to be quoted.
        command: The command line.
        date: When it ended, ISO 8601 in UTC.
        python: Python's version.
        versions: Versions of the packages that matter, as far as they are installed.
        machine: The machine.
        schema: Version of this schema.
    """

    suite: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    trial: bool
    command: str
    date: str
    python: str
    versions: Mapping[str, str]
    machine: Machine
    schema: int = field(default=SCHEMA)

    def save(self, path: Path) -> None:
        """Writes the file.

        Raises:
            OSError: It cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Reads a file.

        Raises:
            OSError: It cannot be read.
            ResultsError: It does not hold results of this schema.
        """
        try:
            found = json.loads(path.read_text("utf-8"))
            machine = found.pop("machine")
            machine["gpus"] = tuple(machine["gpus"])
            results = cls(machine=Machine(**machine), **found)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ResultsError(f"{path} holds no results of gradcam bench: {error!r}") from error
        if results.schema != SCHEMA:
            raise ResultsError(f"{path}: its schema is {results.schema}, not {SCHEMA}")
        return results


def finish(
    suite: str,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    machine: Machine,
    notes: Sequence[str] = (),
    trial: bool = False,
) -> Results:
    """Adds date, command and versions to the measurements of a run.

    Args:
        suite: The suite's name.
        settings: Settings of the run.
        rows: The measurements.
        machine: The machine, described before the run.
        notes: Sentences that a reader needs to judge them.
        trial: Whether the figures are not meant to be quoted.
    """
    return Results(
        suite=suite,
        settings=settings,
        rows=rows,
        notes=notes,
        trial=trial,
        command=_command(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        versions=installed_versions(_PACKAGES),
        machine=machine,
    )


def _command() -> str:
    program = Path(sys.argv[0])
    name = program.name if program.suffix != ".py" else f"python benchmarks/{program.name}"
    # Results are shared: folders of one machine are of no use to others.
    arguments = [_ABSOLUTE.sub("", argument) for argument in sys.argv[1:]]
    return shlex.join([*name.split(), *arguments])


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.+)$", text, re.MULTILINE)
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    has = [flag for flag in known if flags and flag in flags[1].split()]
    return " ".join((name[1] if name else platform.machine(), f"({', '.join(has)})" * bool(has)))


def _gpus() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(found.stdout.split("\n")[:-1])
