"""The documents say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import grpc

from gradcam_server.transport.status import CODES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def test_every_error_code_has_its_cause_and_remedy() -> None:
    """No code that the server can answer with is missing, and none is made up."""
    _, section = PAGE.read_text("utf-8").split("## Errors\n")
    table = section.partition("\n## ")[0]
    named = set(re.findall(r"^\| `([A-Z_]+)`", table, re.MULTILINE))
    ours = {code.name for code in CODES.values()} | {"INTERNAL", "CANCELLED", "UNIMPLEMENTED"}
    assert named == ours
    assert named <= {code.name for code in grpc.StatusCode}


def test_every_link_leads_somewhere() -> None:
    """The files and the headings that the documents link to exist."""
    root = PAGE.parent.parent
    for page in [root / "README.md", root / "CONTRIBUTING.md", *root.glob("docs/*.md")]:
        text = page.read_text("utf-8")
        for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
            target = page.parent / path if path else page
            assert target.exists(), (page.name, path)
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
                anchors = {
                    re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings
                }
                assert anchor in anchors, (page.name, path, anchor)


def test_every_module_in_the_architecture_exists() -> None:
    """The page names no module that was moved or renamed."""
    root = PAGE.parent.parent
    paths = [f"/{path.relative_to(root)}" for path in root.glob("[!.]*/**/*.py")]
    named = set(re.findall(r"`([\w/]+\.py)`", (root / "docs/architecture.md").read_text("utf-8")))
    assert len(named) > 100
    missing = {name for name in named if not any(path.endswith(f"/{name}") for path in paths)}
    assert not missing


def test_the_generated_tables_are_current() -> None:
    """The tables of flags, metrics and modules are those of the code."""
    script = PAGE.parent.parent / "scripts" / "update_docs.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)
