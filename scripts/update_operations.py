"""Writes the table of metrics into docs/operations.md, or checks that it is current.

Usage: python scripts/update_operations.py [--check]
"""

import argparse
import sys
from pathlib import Path

from gradcam_server.telemetry.metric_table import DEFINITIONS, Definition

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operations.md"
BEGIN = "<!-- metrics: written by scripts/update_operations.py -->\n"
END = "<!-- end of metrics -->"


def metric_table() -> str:
    """Returns the table of every metric as Markdown."""
    rows = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| `{one.name}` | {one.type} | {_labels(one)} | {one.help} |" for one in DEFINITIONS]
    return "\n".join(rows) + "\n"


def _labels(definition: Definition) -> str:
    return "; ".join(
        f"`{label}`: {', '.join(values)}" if values else f"`{label}`"
        for label, values in definition.labels.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, and fail if stale")
    old = PAGE.read_text("utf-8")
    before, rest = old.split(BEGIN)
    new = before + BEGIN + metric_table() + END + rest.split(END)[1]
    if not parser.parse_args().check:
        PAGE.write_text(new, "utf-8")
    elif new != old:
        sys.exit("docs/operations.md is stale. Run: python scripts/update_operations.py")


if __name__ == "__main__":
    main()
