"""What type checkers know of the client."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RIGHT = """
from typing import assert_type
from gradcam_client import Client, Explained, Failed, ImageExplanation

for outcome in Client().explain_stream(["cat.jpg"], method="layercam", heatmaps=["overlay"]):
    if outcome.ok:
        assert_type(outcome, Explained)
    else:
        assert_type(outcome, Failed)
    if outcome.error is None:
        assert_type(outcome.result, ImageExplanation)
    if isinstance(outcome, Failed):
        raise outcome.error
    assert_type(outcome.result.top.name, str)
"""
WRONG = """
from gradcam_client import Client

client = Client()
client.explain("cat.jpg", method="gradcamm")
client.explain("cat.jpg", metod="gradcam")
client.explain("cat.jpg", heatmaps=["overlays"])
for outcome in client.explain_stream(["cat.jpg"], score="prob"):
    print(outcome.result.top)
"""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_mypy_reads_the_documents_and_finds_mistakes(tmp_path: Path) -> None:
    """The Python of the README and of docs/client.md passes mypy --strict; typing errors do not."""
    api = pytest.importorskip("mypy.api")
    readme = "".join(blocks(ROOT / "README.md"))  # its blocks continue each other
    # Another test runs the example for FastAPI, whose types take mypy ten seconds.
    docs = [code for code in blocks(ROOT / "docs" / "client.md") if "fastapi" not in code]
    pages = {f"docs{number}": code for number, code in enumerate(docs)}
    assert pages
    for name, code in {**pages, "readme": readme, "right": RIGHT, "wrong": WRONG}.items():
        (tmp_path / f"{name}.py").write_text(code)
    configuration = ROOT / "pyproject.toml"
    options = f"--strict --config-file {configuration} --cache-dir {tmp_path / 'cache'}"
    files = sorted(map(str, tmp_path.glob("*.py")))
    output, errors, _ = api.run([*options.split(), "--follow-imports=silent", *files])
    found = re.findall(r"(\w+)\.py:(\d+): error", output)
    assert found == [("wrong", str(line)) for line in (5, 6, 7, 8, 9)], output + errors
