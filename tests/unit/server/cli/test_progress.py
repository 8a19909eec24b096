"""The progress lines of a job."""

import threading

import pytest

from gradcam_server.batch.schema import error_row
from gradcam_server.batch.sources.base import Item
from gradcam_server.cli.progress import JobLines
from support.made_rows import made_row


def item(index: int) -> Item:
    return Item(index, str(index), str(index), bytes)


def test_a_line_says_how_far_the_job_is() -> None:
    """Images of earlier runs count as done, but not for the rate."""
    now = [100.0]
    lines = JobLines(clock=lambda: now[0])
    with lines:
        lines.begin(10_000, 2_000, 3)
        assert lines.line() == "2,000 of 10,000 images (20.0 %), 3 errors"
        for index in range(11):
            lines.advance(made_row(item(index)) if index else error_row(item(index), "bad"))
        now[0] += 5
        assert lines.line() == (
            "2,011 of 10,000 images (20.1 %), 2.0 images/s, 1 h 6 min remaining, 4 errors"
        )


@pytest.mark.parametrize(
    ("remaining", "text"), [(30, "15 s"), (150, "1 min 15 s"), (7201 * 2, "2 h 0 min")]
)
def test_what_remains_is_a_time(remaining: int, text: str) -> None:
    """The remaining time is in hours and minutes, minutes and seconds, or seconds."""
    now = [0.0]
    lines = JobLines(clock=lambda: now[0])
    with lines:
        lines.begin(remaining + 11, 0, 0)
        for index in range(11):
            lines.advance(made_row(item(index)))
        now[0] += 5
        assert f", {text} remaining" in lines.line()


def test_lines_come_while_no_image_is_finished() -> None:
    """A job that waits for a model or a server writes lines, until it ends."""
    written: list[str] = []
    three = threading.Event()

    def write(line: str) -> None:
        written.append(line)
        if len(written) == 4:
            three.set()

    with JobLines(interval_s=0.001, write=write) as lines:
        lines.begin(5, 0, 0)
        assert three.wait(60)
    assert written[0] == "Explaining 5 of 5 images"
    assert set(written[1:]) == {"0 of 5 images (0.0 %), 0 errors"}
    assert "progress" not in {thread.name for thread in threading.enumerate()}
