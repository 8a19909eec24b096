"""A server as a user starts it: its address, when it was ready, what it costs."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil

from gradcam_client import Client, GradCamError

START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05
_ENGINE = "gradcam_server.engine.ipc.main"


class StartError(RuntimeError):
    """A server did not come up; the end of its log is in the text."""


class RunningServer:
    """A server in a process of its own, with its children.

    Args:
        command: What starts it.
        is_ready: Asked, with what it wrote so far, until it gives the address of the server.
        environment: Variables to add.

    Raises:
        StartError: It ended, or was not ready in time.
    """

    def __init__(
        self,
        command: Sequence[str],
        is_ready: Callable[[str], str | None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # A file, because a pipe that nobody reads would block the server.
        self._log = tempfile.NamedTemporaryFile(prefix="gradcam-bench-", suffix=".log")  # noqa: SIM115
        started = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            self.address = self._wait(is_ready, started + START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self.ready_s = time.perf_counter() - started

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def text(self) -> str:
        """What it wrote."""
        return Path(self._log.name).read_text("utf-8", "replace")

    def close(self) -> None:
        """Asks it to end, with its children, and sees to it that they do."""
        tree = family(self.pid)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for process in tree:
            if process.is_running():
                process.kill()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, is_ready: Callable[[str], str | None], deadline: float) -> str:
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                break
            address = is_ready(self.text)
            if address is not None:
                return address
            time.sleep(_POLL_S)
        raise StartError(f"the server did not come up; its log ends:\n{self.text[-2000:]}")


def gradcam_serve(options: Sequence[str]) -> RunningServer:
    """Starts ``gradcam serve`` on a free port; returns when it is SERVING.

    Raises:
        StartError: It ended, or was not ready in time.
    """
    program = "from gradcam_server.cli import main; main()"
    return RunningServer([sys.executable, "-c", program, "serve", "--port", "0", *options], _ready)


def _ready(log: str) -> str | None:
    listening = re.search(r"Listening on (\S+:\d+)", log)
    if not listening:
        return None
    try:
        with Client(listening[1]) as client:
            client.wait_ready(START_TIMEOUT_S)
    except GradCamError:
        return None
    return listening[1]


def family(pid: int) -> list[psutil.Process]:
    """Returns a process and all below it; none if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_by_part(pid: int) -> dict[str, float]:
    """Returns the CPU seconds that a server has used: of its engines, and of all else."""
    found = {"front_end": 0.0, "engine": 0.0}
    for process in family(pid):
        try:
            part = "engine" if _ENGINE in process.cmdline() else "front_end"
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[part] += times.user + times.system
    return found


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Has servers and their children do nothing for a while."""
    families = [process for pid in pids for process in family(pid)]
    try:
        for process in families:
            with suppress(psutil.Error):
                process.suspend()
        yield
    finally:
        for process in families:
            with suppress(psutil.Error):
                process.resume()


def memory_mib(pid: int) -> float:
    """Returns the memory of a server that is not shared with other processes."""
    total = 0
    for process in family(pid):
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 2**20
