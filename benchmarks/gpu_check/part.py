"""The command line and the result file of a part of the check. Only the standard library."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any


@dataclass
class Part:
    """A part of the check, as ``run`` starts it: python -m gpu_check.PART.

    Attributes:
        bundle: The folder that ``bundle`` wrote.
        platform: ``cuda`` or ``cpu``.
        out: The JSON file of its results, which is whole after each row.
        ends: When its time is over, by ``time.monotonic``.
        rows: What was found, each with its ``kind``.
        notes: Sentences, such as what was left out.
    """

    bundle: Path
    platform: str
    out: Path
    ends: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> str:
        """The device, as ``gradcam serve --device`` takes it."""
        return "CPU:0" if self.platform == "cpu" else "GPU:0"

    @property
    def seconds_left(self) -> float:
        """The time that is left; negative when it is over."""
        return self.ends - monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row, prints it and writes the file again."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        self._write()

    def note(self, sentence: str) -> None:
        """Adds a note and writes the file again."""
        self.notes.append(sentence)
        self._write()

    def _write(self) -> None:
        document = {"rows": self.rows, "notes": self.notes}
        temporary = self.out.with_name(f"{self.out.name}.new")
        temporary.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        temporary.replace(self.out)  # ``run`` may read it at any time


def parse_part(description: str | None, given: Sequence[str] | None = None) -> Part:
    """Returns the part that the command line describes; its time begins now."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--platform", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(given)
    return Part(chosen.bundle, chosen.platform, chosen.out, monotonic() + chosen.seconds)
