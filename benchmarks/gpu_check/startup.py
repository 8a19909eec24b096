"""Part of the check: from the start of ``gradcam serve`` to SERVING, without and with its cache.

Usage: python -m gpu_check.startup --bundle FOLDER --platform cuda --seconds 60 --out FILE
"""

import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from gpu_check.part import Part, Row, parse_part
from gradcam_server.bench.running import gradcam_serve
from gradcam_server.exports.manifest import read_manifest

# Exports, and the seconds that a start without a cache takes, roughly.
_EXPORTS = {"resnet50-bfloat16": 30, "lite0": 20}
_FILLED_STARTS = 2
# Once with a limit of the device's memory.
_LIMITED, _LIMIT_MIB = "resnet50-bfloat16", 8192
_USED_MEMORY = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
_COMPILED = re.compile(r"Compiled (\d+) modules in .*, and read (\d+) from the compilation cache")
_READ = re.compile(r"Read .* and compiled it in ([\d.]+) s")


def read_log(log: str) -> Row:
    """Returns what a server's log says of its start.

    Returns:
        ``compiled_modules`` and ``cached_modules``, which were compiled and read from the cache,
        and ``graphs_s``, the seconds of both with the first runs; None for what is not in the log.
    """
    modules, seconds = _COMPILED.findall(log), _READ.findall(log)
    return {
        "compiled_modules": sum(int(count) for count, _ in modules) if modules else None,
        "cached_modules": sum(int(count) for _, count in modules) if modules else None,
        "graphs_s": round(sum(map(float, seconds)), 1) if seconds else None,
    }


def start(part: Part, export: str, cache: Path, limit_mib: int | None = None) -> Row:
    """Starts a server, and ends it when it is SERVING; returns a row's values."""
    folder = part.bundle / export
    modules = read_manifest(folder).graphs[0].modules
    sizes = ",".join(map(str, part.batch_sizes(modules)))
    options = ["--model", f"{export}={folder}", "--batch-sizes", sizes, "--device", part.device]
    if limit_mib is not None:
        options += ["--device-memory-mib", str(limit_mib)]
    before = used_mib()
    with gradcam_serve([*options, "--cache-dir", str(cache)]) as server:
        row = {"ready_s": server.ready_s, **read_log(server.text)}
        if before is not None and (after := used_mib()) is not None:
            row["device_mib"] = after - before
    return row


def used_mib() -> int | None:
    """Returns the memory of the first GPU that is in use, in MiB; None without nvidia-smi."""
    try:
        run = subprocess.run(_USED_MEMORY, capture_output=True, text=True, check=True, timeout=30)
        return int(run.stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def main() -> None:
    part = parse_part(__doc__)
    for export, needed_s in _EXPORTS.items():
        if not (part.bundle / export).exists():
            part.note(f"{export}: the bundle does not have it")
            continue
        with tempfile.TemporaryDirectory() as cache:
            for number in range(1 + _FILLED_STARTS):
                is_empty = number == 0
                part.measure(
                    {"kind": "startup", "export": export, "cache": "empty" if is_empty else "full"},
                    needed_s if is_empty else needed_s / 3,
                    partial(start, part, export, Path(cache)),
                    always=not part.rows,
                )
            if export == _LIMITED and part.platform == "cuda":
                names = {"kind": "startup", "export": export, "cache": "full"}
                limited = partial(start, part, export, Path(cache), _LIMIT_MIB)
                part.measure({**names, "limit_mib": _LIMIT_MIB}, needed_s / 3, limited)


if __name__ == "__main__":
    main()
