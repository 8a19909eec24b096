"""Progress on stderr: bars for terminals, and lines for logs."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

import click

from gradcam_client import Progress as ImageProgress

if TYPE_CHECKING:
    from rich.progress import Progress

    from gradcam_server.batch.schema import Row

_LINE_INTERVAL_S = 30.0
_SHOW_INTERVAL_S = 0.2
_MIN_RATED_S = 1.0  # a rate over less time is only noise
_CLEAR_LINE = "\r\033[K"


def open_bar() -> "Progress":
    """Makes the progress bar of benchmarks, on stderr. It needs the extra ``bench``."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def say(text: str) -> None:
    """Writes a line to stderr, in place of the progress bar if one stands there."""
    click.echo(f"{_CLEAR_LINE if _is_terminal() else ''}{text}", err=True)


def _is_terminal() -> bool:
    """Whether stderr is one; Python has no stderr if it was closed before the start."""
    stderr: TextIO | None = sys.stderr
    return stderr is not None and stderr.isatty()


def _draw(description: str, count: int) -> Any:
    """Draws a bar on stderr, whose item is a text beside it."""
    bar = click.progressbar(
        length=count, label=description, file=sys.stderr, show_pos=True, item_show_func=str
    )
    bar.current_item = ""
    return bar.__enter__()


class Bar:
    """The progress of a command over images or methods: a bar in a terminal, otherwise lines.

    Args:
        description: The text before the bar.
        count: The number of steps; None if it is not known yet.
        hidden: Whether to show nothing.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        description: str,
        count: int | None,
        *,
        hidden: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._count = description, count
        self._hidden, self._clock = hidden, clock
        self._done, self._said_at = 0, clock()
        self._bar: Any = None

    def advance(self) -> None:
        """One more step is done."""
        self._done += 1
        self._show(self._done, self._count or self._done)

    def show(self, passes: ImageProgress) -> None:
        """Shows how many passes of a single image are done."""
        self._show(passes.completed_passes, passes.total_passes)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.render_finish()

    def _show(self, done: int, count: int) -> None:
        if self._hidden:
            return
        if not _is_terminal():
            if self._clock() >= self._said_at + _LINE_INTERVAL_S:
                self._said_at = self._clock()
                say(f"{self._description}: {done:,} of {count:,}")
            return
        if self._bar is None:
            self._bar = _draw(self._description, count)
        self._bar.length = count
        self._bar.update(done - self._bar.pos)


@contextmanager
def progress_bar(
    count: int | None, *, hidden: bool, description: str = "Explaining"
) -> Iterator[Bar]:
    """Shows the progress, if there is more than one step.

    Args:
        count: The number of steps; None if it is not known yet.
        hidden: Whether to show none in any case.
        description: The text beside the bar.
    """
    with closing(Bar(description, count, hidden=hidden or count == 1)) as bar:
        yield bar


class JobCounts:
    """Counts the images and errors of a job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = self._finished = self._done = self._errors = 0
        self._began_at = 0.0

    def begin(self, total: int, finished: int, errors: int) -> None:
        """The job begins."""
        self._total, self._finished, self._errors = total, finished, errors

    def advance(self, row: "Row") -> None:
        """One more image is done."""
        if not self._done:
            self._began_at = self._clock()
        self._done += 1
        self._errors += row.status != "ok"

    def _rate(self) -> float | None:
        """Images per second from the first image on, which leaves out the loading of the model."""
        took_s = self._clock() - self._began_at
        return (self._done - 1) / took_s if self._done > 1 and took_s > _MIN_RATED_S else None


class JobBar(JobCounts, AbstractContextManager["JobBar"]):
    """The progress of a job, updated a few times a second: showing is slower than counting."""

    def __init__(self) -> None:
        super().__init__()
        self._shown_at = 0.0
        self._bar: Any = None

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()

    def begin(self, total: int, finished: int, errors: int) -> None:
        """The job begins."""
        super().begin(total, finished, errors)
        self._bar = _draw("Explaining", total)
        self._bar.update(finished)

    def advance(self, row: "Row") -> None:
        """One more image is done."""
        super().advance(row)
        completed, now = self._finished + self._done, self._clock()
        if now < self._shown_at + _SHOW_INTERVAL_S and completed < self._total:
            return
        self._shown_at, rate = now, self._rate()
        shown = f"{rate:.1f} images/s, " if rate else ""
        self._bar.update(completed - self._bar.pos, f"{shown}{self._errors} errors")


class JobLines(JobCounts, AbstractContextManager["JobLines"]):
    """The progress of a job as a line every half minute, even while no image is finished.

    Args:
        interval_s: Seconds between two lines.
        clock: Returns the time in seconds.
        write: Writes a line.
    """

    def __init__(
        self,
        interval_s: float = _LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] = lambda line: click.echo(line, err=True),
    ) -> None:
        super().__init__(clock)
        self._interval_s, self._write = interval_s, write
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def begin(self, total: int, finished: int, errors: int) -> None:
        """The job begins."""
        super().begin(total, finished, errors)
        self._write(f"Explaining {total - finished:,} of {total:,} images")
        self._thread.start()

    def line(self) -> str:
        """Returns how many images are done, the rate, the remaining time and the errors."""
        done = self._finished + self._done
        share = 100 * done / self._total if self._total else 100.0
        parts = [f"{done:,} of {self._total:,} images ({share:.1f} %)"]
        if rate := self._rate():
            remaining_s = (self._total - done) / rate
            parts += [f"{rate:.1f} images/s", f"{_duration(remaining_s)} remaining"]
        return ", ".join([*parts, f"{self._errors:,} errors"])

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._write(self.line())


def job_progress(*, hidden: bool) -> AbstractContextManager["JobCounts"]:
    """Shows the progress of a job: a bar in a terminal, otherwise lines."""
    if hidden:
        return nullcontext(JobCounts())
    return JobBar() if _is_terminal() else JobLines()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
