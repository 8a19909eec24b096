"""Progress for logs: a line every half minute, where there is no terminal for a bar."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from gradcam_server.batch.schema import Row

_INTERVAL_S = 30.0
_MIN_RATED_S = 1.0


class ProgressLines:
    """Reports a job's progress on stderr, also while no image is finished.

    Args:
        interval_s: Seconds between two lines.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, interval_s: float = _INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s, self._clock = interval_s, clock
        self._total = self._finished = self._done = self._errors = 0
        self._began_at = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def begin(self, total: int, finished: int, errors: int) -> None:
        """The job begins."""
        self._total, self._finished, self._errors = total, finished, errors
        _write(f"Explaining {total - finished:,} of {total:,} images")
        self._thread.start()

    def advance(self, row: "Row") -> None:
        """One more image is done."""
        if not self._done:
            # From the first image on: loading the model is no part of the rate.
            self._began_at = self._clock()
        self._done += 1
        self._errors += row.status != "ok"

    def line(self) -> str:
        """Says how many images are done, how fast, what remains and what failed."""
        done = self._finished + self._done
        share = 100 * done / self._total if self._total else 100.0
        parts = [f"{done:,} of {self._total:,} images ({share:.1f} %)"]
        took_s = self._clock() - self._began_at if self._done else 0.0
        if took_s > _MIN_RATED_S and self._done > 1:
            rate = (self._done - 1) / took_s
            remaining_s = (self._total - done) / rate
            parts += [f"{rate:.1f} images/s", f"{_duration(remaining_s)} remaining"]
        return ", ".join([*parts, f"{self._errors:,} errors"])

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            _write(self.line())


def _write(line: str) -> None:
    click.echo(line, err=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
