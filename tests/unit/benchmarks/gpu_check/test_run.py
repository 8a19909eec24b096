"""The one command keeps what its parts have measured, and ends in time."""

import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gpu_check import run
from gpu_check.run import Check, Step, descendants, missing_wheels, shares, unpack

PART = """
import argparse, json, os, pathlib, subprocess, sys, time
parser = argparse.ArgumentParser()
for name in ("--bundle", "--platform", "--seconds", "--out", "--cache", "--bare"):
    parser.add_argument(name)
arguments = parser.parse_args()
def write(*rows):
    document = {"rows": [{"kind": "made up", **row} for row in rows], "notes": []}
    pathlib.Path(arguments.out).write_text(json.dumps(document))
"""
GRAPH = {
    "kind": "graph",
    "precision": "bfloat16",
    "batch_size": 8,
    "images_per_s": {"median": 7.0},
    "from_host_images_per_s": {"median": 6.0},
}
BODIES = {
    "good": "write({'seconds': float(arguments.seconds), 'bare': arguments.bare})",
    "rate": f"write({GRAPH})",
    "bad": "write({'number': 1})\nsys.exit('a reason')",
    "silent": "sys.exit('no rows')",
    "slow": (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\n"
        "write({'child': child.pid})\ntime.sleep(600)"
    ),
}


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """A check whose parts are made up."""
    code = tmp_path / "code"
    package = code / "gpu_check"
    package.mkdir(parents=True)
    for name, body in BODIES.items():
        (package / f"{name}.py").write_text(PART + body)
    for name in ("bundle", "out", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text('{"format": 1, "seed": 0}')
    environment = {**os.environ, "PYTHONPATH": str(code)}
    found = Check(tmp_path / "bundle", tmp_path / "out", 1.0, environment, tmp_path / "scratch", {})
    found.results["platform"] = "cpu"
    monkeypatch.setattr(run, "_GRACE_S", 0.5)
    monkeypatch.setattr(run, "_MIN_PART_S", 0.0)
    return found


def run_steps(check: Check, monkeypatch: pytest.MonkeyPatch, *steps: Step) -> Any:
    monkeypatch.setattr(run, "STEPS", steps)
    check.run()
    return check.results["parts"]


def step(module: str, share: float = 100.0, name: str = "") -> Step:
    return Step(name or module, share, module)


def test_a_part_that_fails_keeps_its_rows_and_the_others_run(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reason is in the results, and the file on disk is that of the object."""
    parts = run_steps(check, monkeypatch, step("bad"), step("silent"), step("good"))
    assert parts["bad"]["status"] == "failed: a reason"
    assert [row["number"] for row in parts["bad"]["rows"]] == [1]
    assert parts["silent"]["rows"] == []
    assert parts["good"]["status"] == "done"
    assert check.has_failed
    assert json.loads((tmp_path / "out" / "gpu_check.json").read_text())["parts"] == parts


def test_a_part_that_overruns_is_ended_with_all_that_it_started(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are kept, its child in another session is killed, and the next part runs."""
    parts = run_steps(check, monkeypatch, step("slow", 2.0), step("good", 100.0))
    assert parts["slow"]["status"].startswith("stopped after")
    child = parts["slow"]["rows"][0]["child"]
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)
    assert parts["good"]["status"] == "done"


def test_the_bare_rate_goes_to_the_server(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """The efficiency of the server is over the rate of the part before."""
    parts = run_steps(check, monkeypatch, step("rate"), step("good", name="served"))
    assert parts["served"]["rows"][0]["bare"] == "6.0"


def test_a_part_without_time_is_named(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is skipped, and the results say so."""
    monkeypatch.setattr(run, "_MIN_PART_S", 1e6)
    parts = run_steps(check, monkeypatch, step("good"))
    assert parts["good"]["status"].startswith("skipped")
    assert parts["good"]["rows"] == []


def test_parts_share_the_time_that_is_left() -> None:
    """What a part does not use goes to those after it; the last gets all."""
    steps = [step("good", 60), step("good", 30), step("good", 10)]
    assert shares(steps, 100) == 60
    assert shares(steps[1:], 80) == 60
    assert shares(steps[2:], 7) == 7
    assert [each.name for each in run.STEPS][:4] == [
        *("answers", "graph-bfloat16", "torch", "served")
    ]


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ((3, 12), {"absent-1-cp312-cp312-manylinux.whl", "stable-1-cp311-abi3-manylinux.whl"}),
        ((3, 11), {"absent-1-cp311-cp311-manylinux.whl", "stable-1-cp311-abi3-manylinux.whl"}),
        ((3, 10), set()),
    ],
)
def test_wheels_are_those_that_python_lacks(
    tmp_path: Path, python: tuple[int, int], expected: set[str]
) -> None:
    """Of the wheels for this Python, ours and those of packages that are not installed."""
    always = {"gradcam_server-9-py3-none-any.whl", "missing_too-1-py2.py3-none-any.whl"}
    for name in (
        *always,
        "numpy-9-py3-none-any.whl",
        "absent-1-cp311-cp311-manylinux.whl",
        "absent-1-cp312-cp312-manylinux.whl",
        "stable-1-cp311-abi3-manylinux.whl",
    ):
        (tmp_path / name).touch()
    assert {path.name for path in missing_wheels(tmp_path, python)} == always | expected


def test_unpacked_wheels_can_be_imported(tmp_path: Path) -> None:
    """A wheel is a ZIP archive of its packages, with the metadata of their version."""
    with zipfile.ZipFile(tmp_path / "made_up-1-py3-none-any.whl", "w") as archive:
        archive.writestr("made_up_of_wheel.py", "value = 7")
    unpack(missing_wheels(tmp_path, (3, 12)), tmp_path / "site")
    assert (tmp_path / "site" / "made_up_of_wheel.py").read_text() == "value = 7"


def test_a_folder_that_is_no_bundle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error says what is missing and how to make it."""
    with pytest.raises(SystemExit) as error:
        run.main(["--bundle", str(tmp_path), "--out", str(tmp_path / "out")])
    assert error.value.code == 2
    assert "make gpu-check" in capsys.readouterr().err


def test_descendants_are_children_of_children_too() -> None:
    """Processes of any depth are found, and no others."""
    import subprocess

    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        deadline = time.monotonic() + 20
        while len(found := descendants(child.pid)) < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        ours = descendants(os.getpid())
        assert child.stdin
        child.stdin.close()
    assert child.pid in ours
    assert set(found) <= set(ours)
    assert found
