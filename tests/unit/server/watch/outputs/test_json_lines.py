"""JSON lines on stdout."""

import base64
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from gradcam_client.extents import Extent
from gradcam_server.batch.errors import OutputError
from gradcam_server.watch.frames import Status
from gradcam_server.watch.outputs.json_lines import JsonLines, as_json
from support.watch_results import RAW, answer, explained, explanation, failed, file_frame, frame


def test_a_line_says_all_of_a_frame() -> None:
    """Names and units of the fields are part of the interface."""
    file = io.StringIO()
    JsonLines(file).write(explained(frame(number=50)))
    assert json.loads(file.getvalue()) == {
        "source": "clip",
        "number": 50,
        "time_s": 2.0,
        "path": None,
        "status": "explained",
        "error": None,
        "predictions": [
            {"index": 281, "name": "tabby", "probability": 0.875},
            {"index": 207, "name": "golden retriever", "probability": 0.0625},
        ],
        "target": "281 tabby",
        "target_index": 281,
        "score": 7.25,
        "lag_ms": 12.5,
        "model": "lite0",
        "layer": "top_conv",
        "method": "gradcam",
        "width": 160,
        "height": 120,
    }


def test_a_failed_file_has_the_same_fields() -> None:
    """What is not known is null, so that tools see one table."""
    values = as_json(failed(file_frame(Path("/in/a.jpg"))))
    assert values.keys() == as_json(explained()).keys()
    assert values["path"] == "/in/a.jpg"
    assert (values["status"], values["error"]) == ("failed", "the server drains")
    assert values["predictions"] == []
    assert values["target"] is values["score"] is values["model"] is None


def test_a_reused_answer_says_so() -> None:
    """It has the values of the earlier answer."""
    reused = dataclasses.replace(explained(), status=Status.REUSED)
    assert as_json(reused) == {**as_json(explained()), "status": "reused"}


def decoded(line: str) -> np.ndarray:
    """Decodes the map of a line, as docs/streams.md says."""
    encoded = json.loads(line, parse_constant=pytest.fail)["map"]
    values = np.frombuffer(base64.b64decode(encoded["base64"]), encoded["dtype"])
    return values.reshape(encoded["shape"])


@pytest.mark.parametrize(
    "raw",
    [
        RAW,
        np.random.default_rng(0).random((7, 5), np.float32) * np.float32(1e-9),
        np.array([[np.nan, np.inf, np.float32(1 / 3)]], np.float32),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    ],
    ids=["integers", "small numbers", "not finite", "column by column"],
)
def test_the_map_is_there_on_request(raw: np.ndarray) -> None:
    """To the last bit the method's map, and the part of the image that it covers."""
    extent = Extent(0, 10, 120, 140)
    file = io.StringIO()
    explanations = [explanation(extent=extent, raw=raw)]
    JsonLines(file, with_maps=True).write(explained(explanation=answer(explanations=explanations)))
    found = decoded(file.getvalue())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, raw)
    sides = {"top": 0, "left": 10, "height": 120, "width": 140}
    assert json.loads(file.getvalue())["extent"] == sides


def test_there_is_no_map_without_an_answer_or_a_request() -> None:
    """Of a failed frame it is null; without the option there is no such field."""
    assert as_json(failed(), with_maps=True)["map"] is None
    assert as_json(failed(), with_maps=True)["extent"] is None
    assert not {"map", "extent"} & as_json(explained()).keys()


def test_numbers_that_are_not_finite_are_null() -> None:
    """JSON has no NaN; strict readers refuse the line."""
    broken = dataclasses.replace(explanation(), score=float("nan"))
    file = io.StringIO()
    JsonLines(file).write(explained(explanation=answer(explanations=[broken])))
    assert json.loads(file.getvalue(), parse_constant=pytest.fail)["score"] is None


def test_each_line_is_written_at_once() -> None:
    """A reader sees a frame when it is explained, not when a buffer is full."""
    buffer = io.BytesIO()
    output = JsonLines(io.TextIOWrapper(buffer, "utf-8"))
    for count in range(1, 4):
        output.write(explained())
        assert buffer.getvalue().count(b"\n") == count


SCRIPT = """
import click
from gradcam_server.cli.errors import errors_for_people
from gradcam_server.watch.outputs.json_lines import JsonLines
from support.watch_results import explained
@click.command()
def main():
    with errors_for_people():
        output = JsonLines()
        try:
            while True:
                output.write(explained())
        finally:
            output.close()
main()
"""


def script(stdout: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a command that writes lines until it cannot."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[4],
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    """As of other commands of click: exit status 1 and no traceback."""
    process = script(subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["source"] == "clip"
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (1, b"")


def test_a_full_disk_is_one_line_of_error() -> None:
    """Exit status 1, not the 120 of Python, which would try to write the rest when it exits."""
    with Path("/dev/full").open("wb") as full, script(full) as process:
        _, errors = process.communicate()
    message = b"Error: --json: stdout cannot be written (No space left on device)\n"
    assert (process.returncode, errors) == (1, message)


def test_stdout_that_is_closed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first frame."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="--json: stdout is closed"):
        JsonLines()
