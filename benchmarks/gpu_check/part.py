"""The command line and the result file of a part of the check. Only the standard library."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

_ERROR_LENGTH = 600
# On a CPU an image takes about 0.2 s: larger batches take too long for a rehearsal.
_REHEARSED_BATCH_SIZES = {1, 8}

Row = Mapping[str, Any]


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
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Part":
        """Returns the part of the options of ``add_options``; its time begins now.

        SIGTERM raises SystemExit from now on, so that it closes the servers that it has started.
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        ends = monotonic() + arguments.seconds
        return cls(arguments.bundle, arguments.platform, arguments.out, ends)

    @property
    def device(self) -> str:
        """The device, as ``gradcam serve --device`` takes it."""
        return "CPU:0" if self.platform == "cpu" else "GPU:0"

    @property
    def seconds_left(self) -> float:
        """The time that is left; negative when it is over."""
        return self.ends - monotonic()

    def batch_sizes(self, exported: Iterable[int]) -> list[int]:
        """Returns the batch sizes to measure, in their order: a CPU only rehearses two."""
        rehearses = self.platform == "cpu"
        return [size for size in exported if not rehearses or size in _REHEARSED_BATCH_SIZES]

    def add(self, row: Row) -> None:
        """Adds a row, prints it and writes the file again."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        self._write()

    def note(self, sentence: str) -> None:
        """Adds a note and writes the file again."""
        self.notes.append(sentence)
        self._write()

    def measure(
        self, names: Row, needed_s: float, run: Callable[[], Row], *, always: bool = False
    ) -> Row | None:
        """Measures a row, if there is time for it.

        Args:
            names: The keys that tell the row from others: its kind, batch size and so on.
            needed_s: Seconds that it takes at most, roughly; with less time left it is skipped.
            run: Returns the measured values. If it raises, the row has ``error`` instead.
            always: Whether to measure it even if the time is short.

        Returns:
            The row; None if it was skipped or has failed.
        """
        if self.seconds_left < needed_s and not always:
            self.note(f"{_words(names)}: skipped, {max(self.seconds_left, 0):.0f} s were left")
            return None
        try:
            row = {**names, **run()}
        except Exception as error:  # noqa: BLE001 - other rows are still measured
            self.add({**names, "error": f"{type(error).__name__}: {error}"[:_ERROR_LENGTH]})
            return None
        self.add(row)
        return row

    def _write(self) -> None:
        document = {"rows": self.rows, "notes": self.notes}
        temporary = self.out.with_name(f"{self.out.name}.new")
        temporary.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        temporary.replace(self.out)  # ``run`` may read it at any time


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that all parts have."""
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--platform", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)


def parse_part(description: str | None, given: Sequence[str] | None = None) -> Part:
    """Returns the part that the command line describes; its time begins now."""
    parser = argparse.ArgumentParser(description=description)
    add_options(parser)
    return Part.of(parser.parse_args(given))


def _words(names: Row) -> str:
    return ", ".join(str(value) for value in names.values())
