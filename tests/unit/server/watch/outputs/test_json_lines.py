"""JSON lines on stdout."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradcam_client.extents import Extent
from gradcam_server.watch.frames import Status
from gradcam_server.watch.outputs.json_lines import JsonLines, as_json
from support.watch_results import answer, explained, explanation, failed, file_frame, frame


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


def test_the_map_is_there_on_request() -> None:
    """As rows of numbers of the method's map, with the part of the image that it covers."""
    extent = Extent(0, 10, 120, 140)
    result = explained(explanation=answer(explanations=[explanation(extent=extent)]))
    values = as_json(result, with_maps=True)
    assert values["map"] == [[0, 1, 2], [3, 4, 8]]
    assert values["extent"] == {"top": 0, "left": 10, "height": 120, "width": 140}
    assert as_json(failed(), with_maps=True)["map"] is None


def test_numbers_that_are_not_finite_are_null() -> None:
    """JSON has no NaN; strict readers refuse the line."""
    raw = np.array([[np.nan, np.inf]], np.float32)
    broken = dataclasses.replace(explanation(raw=raw), score=float("nan"))
    file = io.StringIO()
    JsonLines(file, with_maps=True).write(explained(explanation=answer(explanations=[broken])))
    values = json.loads(file.getvalue(), parse_constant=pytest.fail)
    assert values["score"] is None
    assert values["map"] == [[None, None]]


def test_each_line_is_written_at_once() -> None:
    """A reader sees a frame when it is explained, not when a buffer is full."""
    buffer = io.BytesIO()
    output = JsonLines(io.TextIOWrapper(buffer, "utf-8"))
    for count in range(1, 4):
        output.write(explained())
        assert buffer.getvalue().count(b"\n") == count


SCRIPT = """
import click
from gradcam_server.watch.outputs.json_lines import JsonLines
from support.watch_results import explained
@click.command()
def main():
    output = JsonLines()
    try:
        while True:
            output.write(explained())
    finally:
        output.close()
main()
"""


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    """As of other commands of click: exit status 1 and no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[4],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["source"] == "clip"
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (1, b"")
