"""Searches for inputs that break an entry point, with atheris, guided by coverage.

    python -m fuzz.target ENTRY_POINT COUNTS_FILE [libFuzzer options] [CORPUS]

An input that raises, crashes, hangs or takes too much memory ends the search, and is kept.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gradcam_server", "PIL"]):
    from fuzz.entry_points import Services, entry_points

_WRITE_EVERY = 100


def main() -> None:
    """Runs until libFuzzer ends the process."""
    name, counts_file, *options = sys.argv[1:]
    (entry_point,) = (one for one in entry_points(Services()) if one.name == name)
    counts: Counter[str] = Counter()

    def check(data: bytes) -> None:
        counts[entry_point.check(data)] += 1
        if counts.total() % _WRITE_EVERY == 0:
            Path(counts_file).write_text(json.dumps(counts), "ascii")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = atheris.Mutate(data, max_size) if rng.random() < 0.2 else data
        return entry_point.mutate(changed, rng)[:max_size]

    corpus = Path(options[-1])
    for number, seed_input in enumerate(entry_point.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed_input)
    atheris.Setup([sys.argv[0], *options], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
