"""Servers as child processes, as users start them: start, stop, CPU time and memory."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil

from gradcam_client import Client, GradCamError

START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05
_IDLE_S = 0.5
_MAX_IDLE_SHARE = 0.1
_MAX_SETTLE_S = 30.0
_ENGINE = "gradcam_server.engine.ipc.main"


class StartError(RuntimeError):
    """A server did not become ready; the text holds the end of its log."""


class RunningServer(AbstractContextManager["RunningServer"]):
    """A server in a process of its own, with its children.

    Args:
        command: The command that starts it.
        is_ready: Called repeatedly with the log so far; returns the server's address when it is
            ready, else None.
        environment: Environment variables to add.
        timeout_s: Seconds until it must be ready.

    Raises:
        StartError: It ended, or was not ready in time.
    """

    def __init__(
        self,
        command: Sequence[str],
        is_ready: Callable[[str], str | None],
        environment: Mapping[str, str] | None = None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        # A file: an unread pipe would block the server.
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
            self.address = self._wait(is_ready, started + timeout_s)
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
        """Its log so far."""
        return Path(self._log.name).read_text("utf-8", "replace")

    def close(self) -> None:
        """Terminates the server and its children; kills those that do not end."""
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
        raise StartError(f"the server did not start; its log ends:\n{self.text[-2000:]}")


def gradcam_serve(options: Sequence[str]) -> RunningServer:
    """Starts ``gradcam serve`` on a free port; returns when it is SERVING and idle.

    A server that has just become ready measures and compiles its streams.

    Raises:
        StartError: It ended, or was not ready in time.
    """
    program = "from gradcam_server.cli import main; main()"
    server = RunningServer(
        [sys.executable, "-c", program, "serve", "--port", "0", *options], _ready
    )
    _wait_idle(server.pid)
    return server


def _wait_idle(pid: int) -> None:
    """Waits until a server uses hardly any CPU time, but not for ever."""
    deadline = time.perf_counter() + _MAX_SETTLE_S
    used_s = sum(cpu_by_part(pid).values())
    while time.perf_counter() < deadline:
        time.sleep(_IDLE_S)
        before_s, used_s = used_s, sum(cpu_by_part(pid).values())
        if used_s - before_s < _IDLE_S * _MAX_IDLE_SHARE:
            return


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
    """Returns a process and its descendants; empty if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_by_part(pid: int) -> dict[str, float]:
    """Returns the CPU seconds of a server: of its engines, and of all other processes."""
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
    """Suspends servers and their children within the context."""
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
    """Returns the unshared memory of a server and its children in MiB."""
    total = 0
    for process in family(pid):
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 2**20
