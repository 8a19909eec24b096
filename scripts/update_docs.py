"""Writes the generated parts of the pages in docs/, or checks that they are current.

The parts are the flags in settings.md, the metrics in operations.md and the modules in
architecture.md.

Usage: python scripts/update_docs.py [--check]
"""

import argparse
import ast
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gradcam_server.config.settings import ServeConfig, flag, show_default, variable
from gradcam_server.telemetry.metric_table import DEFINITIONS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("server/gradcam_server", "client/gradcam_client")


def flag_rows() -> Iterator[tuple[str, ...]]:
    """Yields flag, variable, default and meaning of every setting."""
    for setting in dataclasses.fields(ServeConfig):
        names = f"`{flag(setting.name)}`", f"`{variable(setting.name)}`"
        yield *names, show_default(setting.default), setting.metadata["help"]


def metric_rows() -> Iterator[tuple[str, ...]]:
    """Yields name, type, labels and meaning of every metric."""
    for metric in DEFINITIONS:
        labels = "; ".join(
            f"`{label}`: {', '.join(values)}" if values else f"`{label}`"
            for label, values in metric.labels.items()
        )
        yield f"`{metric.name}`", metric.type, labels, metric.help


def module_rows() -> Iterator[tuple[str, ...]]:
    """Yields path and summary of every package and module, packages before their modules."""
    for package in PACKAGES:
        root = ROOT / package
        for folder in sorted({path.parent for path in root.rglob("*.py")}):
            for path in sorted(folder.glob("*.py"), key=lambda path: (path.stem[0] != "_", path)):
                is_package = path.stem == "__init__"
                name = f"{(folder if is_package else path).relative_to(root.parent)}"
                yield f"**`{name}/`**" if is_package else f"`{name}`", _summary(path)


def _summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if text is None:
        sys.exit(f"{path.relative_to(ROOT)} has no docstring")
    return text.partition("\n\n")[0].replace("\n", " ").replace("``", "`").replace("|", "\\|")


PARTS: dict[str, tuple[str, tuple[str, ...], Callable[[], Iterable[tuple[str, ...]]]]] = {
    "settings.md": ("flags", ("flag", "variable", "default", "meaning"), flag_rows),
    "operations.md": ("metrics", ("metric", "type", "labels", "meaning"), metric_rows),
    "architecture.md": ("modules", ("module", "content"), module_rows),
}


def updated(page: str, text: str) -> str:
    """Returns the text of a page with its generated table as it should be.

    Args:
        page: A key of ``PARTS``.
        text: The text of the page, with the table between two comments.
    """
    name, titles, rows = PARTS[page]
    begin, end = f"<!-- {name}: written by scripts/update_docs.py -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    lines = [titles, ("---",) * len(titles), *rows()]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return before + begin + table + end + rest.split(end)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, and fail if stale")
    is_check = parser.parse_args().check
    for name in PARTS:
        page = ROOT / "docs" / name
        old = page.read_text("utf-8")
        new = updated(name, old)
        if not is_check:
            page.write_text(new, "utf-8")
        elif new != old:
            sys.exit(f"docs/{name} is stale. Run: make docs")


if __name__ == "__main__":
    main()
