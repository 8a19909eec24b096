"""A part keeps what it has measured, whatever happens after."""

import json
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from gpu_check.part import Part, Row


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def fail() -> Row:
    raise ValueError("as asked")


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return Part(tmp_path, "cpu", tmp_path / "part.json", monotonic() + 60)


def test_the_file_is_whole_after_each_row(part: Part) -> None:
    """A part that is killed leaves its rows."""
    for number in range(3):
        part.measure({"kind": "made up", "number": number}, 1, lambda: {"value": 7})
        assert [row["number"] for row in read(part.out)["rows"]] == list(range(number + 1))
    assert list(part.out.parent.iterdir()) == [part.out]


def test_a_cpu_rehearses_two_batch_sizes(part: Part) -> None:
    """Larger batches would take minutes there; a GPU gets all, in their order."""
    sizes = (128, 1, 256, 8)
    assert part.batch_sizes(sizes) == [1, 8]
    part.platform = "cuda"
    assert part.batch_sizes(sizes) == list(sizes)


def test_a_row_that_fails_leaves_the_others(part: Part) -> None:
    """An error is a row, and the next row is measured."""
    assert part.measure({"kind": "made up", "number": 0}, 1, fail) is None
    assert part.measure({"kind": "made up", "number": 1}, 1, dict) is not None
    first, second = read(part.out)["rows"]
    assert first["error"] == "ValueError: as asked"
    assert "error" not in second


def test_a_row_without_time_is_named(part: Part) -> None:
    """A row that needs more time than is left is skipped, and a note says so."""
    asked = []

    def run() -> Row:
        asked.append(1)
        return {}

    part.measure({"kind": "made up", "way": "slow"}, 90, run)
    assert not asked
    assert "slow" in read(part.out)["notes"][0]
    part.measure({"kind": "made up"}, 90, run, always=True)
    assert asked == [1]
