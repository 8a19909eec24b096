"""Progress on stderr: bars for terminals, and lines for logs."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from gradcam_client import Progress as ImageProgress

if TYPE_CHECKING:
    from gradcam_server.batch.schema import Row

_LINE_INTERVAL_S = 30.0
_SHOW_INTERVAL_S = 0.2
_MIN_RATED_S = 1.0  # a rate over less time is only noise


def open_bar(*columns: ProgressColumn, hidden: bool = False) -> Progress:
    """Makes a progress bar on stderr: description, bar, count, and ``columns`` or the time left."""
    first = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    last = columns or (TimeRemainingColumn(),)
    return Progress(*first, *last, console=Console(stderr=True), disable=hidden)


class Bar:
    """The progress of a command over images or methods."""

    def __init__(self, progress: Progress, description: str, count: int | None) -> None:
        self._progress, self._task = progress, progress.add_task(description, total=count)

    def advance(self) -> None:
        """One more step is done."""
        self._progress.advance(self._task)

    def show(self, passes: ImageProgress) -> None:
        """Shows how many passes of a single image are done."""
        self._progress.update(
            self._task, completed=passes.completed_passes, total=passes.total_passes
        )


@contextmanager
def progress_bar(
    count: int | None, *, hidden: bool, description: str = "Explaining"
) -> Iterator[Bar]:
    """Shows a progress bar, if there is more than one step.

    Args:
        count: The number of steps; None if it is not known yet.
        hidden: Whether to show none in any case.
        description: The text beside the bar.
    """
    with open_bar(hidden=hidden or count == 1) as progress:
        yield Bar(progress, description, count)


class _JobCounts:
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


class JobBar(_JobCounts):
    """The progress of a job, updated a few times a second: showing is slower than counting."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress, self._shown_at = progress, 0.0

    def begin(self, total: int, finished: int, errors: int) -> None:
        """The job begins."""
        super().begin(total, finished, errors)
        self._task = self._progress.add_task(
            "Explaining", total=total, completed=finished, errors=errors, rate="-"
        )

    def advance(self, row: "Row") -> None:
        """One more image is done."""
        super().advance(row)
        completed, now = self._finished + self._done, self._clock()
        if now < self._shown_at + _SHOW_INTERVAL_S and completed < self._total:
            return
        self._shown_at, rate = now, self._rate()
        shown = f"{rate:.1f}" if rate else "-"
        self._progress.update(self._task, completed=completed, errors=self._errors, rate=shown)


class JobLines(_JobCounts, AbstractContextManager["JobLines"]):
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


@contextmanager
def job_progress(*, hidden: bool) -> Iterator[JobBar | JobLines]:
    """Shows the progress of a job: a bar in a terminal, otherwise lines."""
    if not (hidden or sys.stderr.isatty()):
        with JobLines() as lines:
            yield lines
        return
    rate = TextColumn("{task.fields[rate]} images/s")
    errors = TextColumn("{task.fields[errors]} errors")
    with open_bar(rate, TimeRemainingColumn(), errors, hidden=hidden) as progress:
        yield JobBar(progress)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
