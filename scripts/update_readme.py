"""Writes the table of flags into the README, or checks that it is current.

Usage: python scripts/update_readme.py [--check]
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from gradcam_server.config.settings import ServeConfig, flag, show_default, variable

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- flags: written by scripts/update_readme.py -->\n"
END = "<!-- end of flags -->"


def flag_table() -> str:
    """Returns the table of every setting as Markdown."""
    rows = ["| flag | variable | default | meaning |", "| --- | --- | --- | --- |"]
    for setting in dataclasses.fields(ServeConfig):
        cells = (
            f"`{flag(setting.name)}`",
            f"`{variable(setting.name)}`",
            show_default(setting.default),
            setting.metadata["help"],
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, and fail if stale")
    old = README.read_text("utf-8")
    before, rest = old.split(BEGIN)
    new = before + BEGIN + flag_table() + END + rest.split(END)[1]
    if not parser.parse_args().check:
        README.write_text(new, "utf-8")
    elif new != old:
        sys.exit("README.md: the table of flags is stale. Run: make readme")


if __name__ == "__main__":
    main()
