"""``gradcam watch`` as a process of its own."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import av

from support.server import GRADCAM

TIMEOUT_S = 60
_COUNT = r"(\d[\d,]*) (\w+)"


def command(*arguments: object) -> list[str]:
    """Returns the command line of ``gradcam watch``."""
    return [GRADCAM, "watch", *map(str, arguments)]


def environment(state: Path) -> dict[str, str]:
    """Returns the variables of a process whose journals are in a folder of the test."""
    return {**os.environ, "XDG_STATE_HOME": str(state)}


class Watching:
    """``gradcam watch --json`` as a process of its own.

    Args:
        *arguments: Its other arguments.
        state: The folder of its journals.

    Attributes:
        process: The process.
        results: The lines that ``wait_for`` and ``end`` have taken.
    """

    def __init__(self, *arguments: object, state: Path) -> None:
        self.process = subprocess.Popen(
            command("--json", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(state),
        )
        self.results: list[dict[str, Any]] = []
        self._lines: Queue[str] = Queue()
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read),
            threading.Thread(target=self._read_errors),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            self._errors.extend(lines)

    @property
    def text(self) -> str:
        """What it wrote to stderr so far."""
        return "".join(self._errors)

    def wait_for(self, count: int) -> None:
        """Waits until so many results have come."""
        while len(self.results) < count:
            line = self._lines.get(timeout=TIMEOUT_S)
            assert line, self.text
            self.results.append(json.loads(line))

    def wait_for_status(self, status: str, count: int = 1) -> None:
        """Waits until so many further results than those that are there have a status."""
        while not self._lines.empty():
            self.wait_for(len(self.results) + 1)
        wanted = self.count_of(status) + count
        while self.count_of(status) < wanted:
            self.wait_for(len(self.results) + 1)

    def count_of(self, status: str) -> int:
        """Returns how many results have a status."""
        return sum(one["status"] == status for one in self.results)

    def end(self, number: int | None = None) -> int:
        """Sends a signal, if any, waits for the end and returns the exit status."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(TIMEOUT_S)
        for thread in self._threads:
            thread.join()
        while line := self._lines.get():
            self.results.append(json.loads(line))
        return status


@contextmanager
def watching(*arguments: object, state: Path) -> Iterator[Watching]:
    """Runs the command until the block ends, where it is killed if it still runs."""
    running = Watching(*arguments, state=state)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.end()


def frames_in(path: Path) -> int:
    """Returns the number of frames of a video."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def counts_of(text: str, source: str) -> dict[str, int]:
    """Reads the last line of counts of a source from stderr, 0 for those that it leaves out."""
    line = [line for line in text.splitlines() if line.startswith(f"{source}: ")][-1]
    found = {name: int(count.replace(",", "")) for count, name in re.findall(_COUNT, line)}
    return {name: found.get(name, 0) for name in ("read", "explained", "shed", "failed")}
