"""Fuzzes every entry point: python -m fuzz [--inputs N] [--seed S] [ENTRY_POINT ...].

Each entry point runs in its own process, so that a crash is a finding too. Findings are kept in
.cache/fuzz/findings; repaired findings belong in tests/fuzz/regressions/ENTRY_POINT.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzz.entry_points import Services, entry_points

FINDINGS = Path(".cache/fuzz/findings")
# For entry points that read little more than a name; the decoder and the requests share the rest.
_SMALL_INPUTS = 2000
_HEAVY = {
    "image": 0.6,
    "ExplainImage": 0.15,
    "StreamExplainImages": 0.1,
    "ModelInfer": 0.08,
    "ModelStreamInfer": 0.07,
    "kserve_v1": 0.04,
    "kserve_v2": 0.04,
}
_LIMITS = ("-timeout=20", "-rss_limit_mb=400", "-max_len=65536", "-len_control=0")


def fuzz(name: str, inputs: int, seed: int) -> tuple[int, dict[str, int], bool]:
    """Runs one entry point.

    Returns:
        The number of inputs, the number of each outcome (of nearly all inputs), and whether an
        input broke the entry point.
    """
    FINDINGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        process = subprocess.run(
            [
                *(sys.executable, "-m", "fuzz.target", name, str(counts)),
                *(*_LIMITS, f"-runs={inputs}", f"-seed={seed}"),
                *(f"-artifact_prefix={FINDINGS}/{name}-", str(corpus)),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        done = re.search(r"Done (\d+) runs", process.stderr)
        outcomes = json.loads(counts.read_text("ascii")) if counts.exists() else {}
    if done is None or process.returncode:
        print(process.stdout[-4000:], process.stderr[-4000:])
        return sum(outcomes.values()), outcomes, True
    return int(done[1]), outcomes, False


def main() -> int:
    """Returns the exit status: 1 if an input broke an entry point."""
    names = [entry_point.name for entry_point in entry_points(Services())]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ENTRY_POINT", choices=[*names, []])
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    total, broken = 0, []
    for name in arguments.names or names:
        share = round(arguments.inputs * _HEAVY[name]) if name in _HEAVY else _SMALL_INPUTS
        started = time.monotonic()
        count, outcomes, broke = fuzz(name, share, arguments.seed)
        total += count
        broken += [name] * broke
        print(f"{name:20} {count:7} inputs in {time.monotonic() - started:4.0f} s: {outcomes}")
        sys.stdout.flush()
    print(f"{total} inputs; broken: {', '.join(broken) or 'none'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
