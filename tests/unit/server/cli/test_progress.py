"""The progress of commands and jobs: lines without a terminal, bars in a terminal."""

import io
import itertools
import subprocess
import sys
import threading

import pytest

from gradcam_server.batch.schema import error_row
from gradcam_server.batch.sources.base import Item
from gradcam_server.cli.progress import Bar, JobBar, JobLines, say
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


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_command_says_how_far_it_is_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line at most every half minute; none for what ends sooner."""
    now = [100.0]
    bar = Bar("Comparing", 9, clock=lambda: now[0])
    for passed_s in (5, 26, 1, 30):
        now[0] += passed_s
        bar.advance()
    bar.close()
    assert capsys.readouterr().err.splitlines() == ["Comparing: 2 of 9", "Comparing: 4 of 9"]


def test_a_bar_in_a_terminal_makes_room_for_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line takes the place of the bar, which is drawn again below it."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = Bar("Comparing", 2)
    bar.advance()
    say("compiling ...")
    bar.advance()
    bar.close()
    before, after = terminal.getvalue().split("\r\033[Kcompiling ...\n")
    assert "1/2" in before
    assert "Comparing" in after
    assert "2/2" in after


def test_the_bar_of_a_job_shows_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last update shows all images and the errors among them."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with JobBar() as bar:
        bar.begin(3, 1, 4)
        bar.advance(made_row(item(1)))
        bar.advance(error_row(item(2), "bad"))
    last = terminal.getvalue().rpartition("Explaining")[2]
    assert "3/3" in last
    assert "5 errors" in last


def test_nothing_is_said_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``2>&-``: the command goes on."""
    monkeypatch.setattr(sys, "stderr", None)
    say("a line")
    bar = Bar("images", 2, clock=itertools.count(0.0, 100.0).__next__)
    bar.advance()


def test_progress_needs_no_package_of_benchmarks() -> None:
    """The client's installation has no rich."""
    modules = "gradcam_server.cli.explain, gradcam_server.cli.batch"
    code = f"import sys, {modules}; print('rich' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
