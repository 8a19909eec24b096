"""The commands and code of the README and the Dockerfile work."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.server import GRADCAM, RunningServer

ROOT = Path(__file__).resolve().parents[2]


def readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text("utf-8")
    # All blocks, so that the end of one is not taken for the beginning of the next.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for name, code in blocks if name == language]


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """A folder with the files that the README's examples name, as in a clone."""
    examples = tmp_path / "examples" / "images"
    examples.mkdir(parents=True)
    for name in ("cat.jpg", "espresso.jpg"):
        shutil.copy(images / name, examples)
    return tmp_path


def test_the_readmes_python_runs(server: RunningServer, folder: Path) -> None:
    """The examples run in their order, and do what they say."""
    code = "".join(readme_blocks("python")).replace("localhost:50051", server.address)
    command = [sys.executable, "-W", "error", "-c", code]
    printed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert "Egyptian cat" in printed
    assert "espresso.jpg" in printed
    assert (folder / "out.jpg").read_bytes().startswith(b"\xff\xd8")


def test_the_readmes_explain_commands_run(server: RunningServer, folder: Path) -> None:
    """Each ``gradcam explain`` and ``health`` line of the README works as it stands."""
    lines = [
        line.partition("  #")[0].replace("localhost:50051", server.address)
        for block in readme_blocks("")
        for line in block.splitlines()
        if line.startswith(("gradcam explain", "gradcam health"))
    ]
    assert len(lines) >= 7
    for line in lines:
        shell = line.replace("gradcam", shlex.quote(GRADCAM), 1)
        subprocess.run(shell, shell=True, cwd=folder, check=True, capture_output=True)
    names = {path.name for path in (folder / "overlays").iterdir()}
    assert names == {"cat-281-tabby.jpg", "cat-282-tiger_cat.jpg"}
    assert (folder / "numbers" / "espresso.npz").exists()
    assert "espresso" in (folder / "answers.jsonl").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/http.md"])
def test_the_curl_lines_run(server: RunningServer, folder: Path, page: str) -> None:
    """Each ``curl`` line of the README and of the page on HTTP works as it stands."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.M | re.DOTALL)
    lines = [line for one in blocks for line in one.splitlines() if line.startswith("curl ")]
    assert len(lines) >= 2
    for line in lines:
        asked = line.replace("http://localhost:8080", server.http_address)
        asked = asked.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
        ended = subprocess.run(asked, shell=True, cwd=folder, check=False, capture_output=True)
        assert ended.returncode == 0, (line, ended.stdout, ended.stderr)
        if ">" not in line:
            assert json.loads(ended.stdout), line
    pictures = [folder / line.rpartition("> ")[2] for line in lines if line.endswith(".jpg")]
    assert pictures
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\xff\xd8")


@pytest.mark.timeout(900)
def test_the_dockerfiles_steps_give_a_server_that_answers() -> None:
    """The files that the Dockerfile copies are enough to install a server that answers."""
    script = ROOT / "scripts" / "try_dockerfile.py"
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Egyptian cat" in ended.stdout
