"""A subject in a process of its own: its memory, threads and environment are its own."""

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self


class WorkerError(RuntimeError):
    """What went wrong in the other process; its traceback is the text."""


class Worker:
    """Makes an object in another process, and calls its methods.

    Args:
        make: Makes the object there; a function of a module.
        *arguments: Its arguments; they are pickled.
        environment: Variables of the other process, set before anything is imported there.

    Raises:
        WorkerError: ``make`` raised.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(theirs, dict(environment or {})), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            # Not among the arguments: to unpickle it imports its module.
            self._pipe.send((make, arguments))
            self.receive()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method there, and waits for what it returns.

        Raises:
            WorkerError: It raised, or the process died.
        """
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        """Calls a method there; ``receive`` waits for it."""
        self._pipe.send((method, arguments))

    def receive(self) -> Any:
        """Waits for what the method that was sent returns.

        Raises:
            WorkerError: It raised, or the process died.
        """
        try:
            is_error, value = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            code = self._process.exitcode
            raise WorkerError(f"the process ended, exit status {code}") from error
        if is_error:
            raise WorkerError(value)
        return value

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cpu_s() -> float:
    """Returns the CPU time that this process has used in all its threads, in seconds."""
    return time.process_time()


def anonymous_bytes() -> int:
    """Returns the memory of this process without its files."""
    fields = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in fields if line.startswith("RssAnon"))


def peak_bytes() -> int:
    """Returns the most memory that this process ever had, files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    try:
        make, arguments = pipe.recv()
        made = make(*arguments)
    except BaseException:  # noqa: BLE001 - it is told
        pipe.send((True, traceback.format_exc()))
        return
    pipe.send((False, None))
    while True:
        try:
            method, given = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return  # whoever asked is gone
        try:
            answer = (False, getattr(made, method)(*given))
        except BaseException:  # noqa: BLE001 - it is told
            answer = (True, traceback.format_exc())
        pipe.send(answer)
