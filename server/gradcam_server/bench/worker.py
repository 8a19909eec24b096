"""An object in a process of its own, with its own memory, threads and environment."""

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any


class WorkerError(RuntimeError):
    """An error in the other process; the text is its traceback."""


class Worker(AbstractContextManager["Worker"]):
    """Makes an object in another process, and calls its methods.

    Args:
        make: Makes the object there; a function or class of a module.
        *arguments: Arguments of ``make``; they are pickled.
        environment: Environment variables to set there before any import.

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
            # Sent after the start: unpickling ``make`` imports its module, with the variables set.
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
        """Calls a method there, and returns its result.

        Raises:
            WorkerError: It raised, or the process died.
        """
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        """Calls a method there; ``receive`` returns its result."""
        self._pipe.send((method, arguments))

    def receive(self) -> Any:
        """Waits for the result of the method that was sent.

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

    def __exit__(self, *_: object) -> None:
        self.close()


def cpu_s() -> float:
    """Returns the CPU time that this process has used in all its threads, in seconds."""
    return time.process_time()


def peak_bytes() -> int:
    """Returns the peak memory of this process, mapped files included, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    try:
        make, arguments = pipe.recv()
        made = make(*arguments)
    except BaseException:  # noqa: BLE001 - sent to the caller
        pipe.send((True, traceback.format_exc()))
        return
    pipe.send((False, None))
    while True:
        try:
            method, given = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return  # the other end is closed
        try:
            answer = (False, getattr(made, method)(*given))
        except BaseException:  # noqa: BLE001 - sent to the caller
            answer = (True, traceback.format_exc())
        pipe.send(answer)
