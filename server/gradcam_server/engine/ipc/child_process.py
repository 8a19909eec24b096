"""Child processes of the server: start one, watch it, end it, keep one running.

    spawn -> control socket -> wait -> reason -> pause -> spawn ...

A child is a Python module that is run with the numbers of inherited file descriptors as arguments,
its end of the control socket first. A child must end when the other end of that socket is closed:
then no child outlives the server, however the server ends.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Self

from gradcam_server.errors import failure_reason, is_expected
from gradcam_server.telemetry.native_stderr import stderr_for_children

logger = logging.getLogger(__name__)

CLOSE_S = 5.0


class ChildProcess:
    """A running child. ``spawn`` starts one.

    Args:
        process: The process.
        reader: Reads from the control socket.
        writer: Writes to the control socket.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process, self.reader, self.writer = process, reader, writer
        self._kill_reason = ""

    @classmethod
    async def spawn(cls, module: str, *descriptors: int) -> Self:
        """Starts a child. If this fails or is cancelled, no process or descriptor is left.

        Args:
            module: The Python module to run.
            *descriptors: File descriptors that it inherits under their numbers. They stay open
                here. The child's arguments are the number of its end of the control socket, these
                numbers, and that of stderr if native code's lines are logged as JSON.

        Raises:
            OSError: There is no descriptor, process or memory left.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                inherited = (theirs.fileno(), *descriptors, *stderr_for_children())
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", module, *map(str, inherited)), pass_fds=inherited
                )
            try:
                reader, writer = await asyncio.open_connection(sock=ours)
            except BaseException:
                await _kill(process)
                raise
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait(self) -> tuple[int, str]:
        """Waits for the child's end.

        Returns:
            The exit status (negative: the signal that killed it), and in words why it ended.
        """
        status = await self._process.wait()
        return status, self._kill_reason or exit_reason(status)

    async def wait_disconnected(self) -> str:
        """Waits for the end of a child whose control socket is closed, for a few seconds.

        Returns:
            In words, why the child ended; or that it only closed its connection.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                _, reason = await self.wait()
                return reason
        return self._kill_reason or "it closed its connection"

    def kill(self, reason: str) -> None:
        """Kills the child, unless it has ended.

        Args:
            reason: Why, for ``wait`` to return.
        """
        if self._process.returncode is None:
            self._kill_reason = self._kill_reason or reason
            with suppress(ProcessLookupError):
                self._process.kill()

    def hang_up(self) -> None:
        """Closes the control socket, which asks the child to end."""
        self.writer.close()

    async def close(self, limit_s: float = CLOSE_S) -> None:
        """Asks the child to end, and kills it if it does not.

        Args:
            limit_s: How long the child may take, in seconds; with 0 it is killed at once.
        """
        self.hang_up()
        try:
            async with asyncio.timeout(limit_s):
                await self._process.wait()
        except BaseException as error:
            await _kill(self._process)
            if not isinstance(error, TimeoutError):
                raise


class Watchdog:
    """Detects a child that hangs: it is silent, or its batch does not end.

    Args:
        limit_s: How long a child may be silent, or a batch may run, in seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._heard_at = limit_s, perf_counter()

    def heard(self) -> None:
        """Notes that the child has sent something."""
        self._heard_at = perf_counter()

    async def wait(self, batch_s: Callable[[], float] = lambda: 0.0) -> str:
        """Waits until the child hangs; returns in words how.

        Args:
            batch_s: Returns how long its batch has been running, in seconds.
        """
        interval_s = min(self._limit_s / 4, 1)
        while True:
            asleep_at = perf_counter()
            await asyncio.sleep(interval_s)
            now = perf_counter()
            if now - asleep_at > 2 * interval_s:
                self._heard_at = now  # this process was stopped, perhaps with the whole machine
            silent_s = now - self._heard_at
            if batch_s() > self._limit_s:
                return f"a batch ran for more than {self._limit_s:g} s (--watchdog-s)"
            if silent_s > self._limit_s:
                return f"nothing was heard of it for {silent_s:.0f} s (--watchdog-s)"


@dataclass(frozen=True)
class Backoff:
    """Pauses before restarts. The first restart is made at once.

    Attributes:
        first_s: The pause before the second restart, in seconds. Each pause doubles.
        max_s: The longest pause, in seconds.
        stable_s: After a run of so many seconds the pauses begin anew.
    """

    first_s: float = 0.5
    max_s: float = 30.0
    stable_s: float = 30.0

    def next(self, pause_s: float) -> float:
        """Returns the pause after this one, in seconds."""
        return min(max(2 * pause_s, self.first_s), self.max_s)


BACKOFF = Backoff()


async def keep_running(
    name: str,
    run: Callable[[], Awaitable[str]],
    stop: asyncio.Event,
    lost: Callable[[str], None] = lambda _: None,
    backoff: Backoff = BACKOFF,
) -> None:
    """Runs something, and restarts it whenever it ends or fails, until it is stopped.

    Each loss is logged once. No exception of ``run`` ends the loop; cancellation does.

    Args:
        name: The subject of the log's sentences, such as "The engine".
        run: Runs to the end, and returns in words why it ended.
        stop: Once set, no run begins, and a pause ends. A run is not interrupted.
        lost: Called with the reason after each run, unless it was stopped. May stop the loop.
        backoff: The pauses before new runs.
    """
    pause_s = 0.0
    while not stop.is_set():
        began, fault = perf_counter(), None
        try:
            what, reason = "was lost", await run()
        except Exception as error:  # noqa: BLE001 - supervision survives all errors
            what, reason = "cannot be started", failure_reason(error)
            fault = None if is_expected(error) else error
        if stop.is_set():
            return
        lost(reason)
        if stop.is_set():
            return
        if perf_counter() - began > backoff.stable_s:
            pause_s = 0.0
        again = f" in {pause_s:g} s" if pause_s else ""
        logger.error("%s %s: %s; starting it again%s", name, what, reason, again, exc_info=fault)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await stop.wait()
        pause_s = backoff.next(pause_s)


def exit_reason(status: int) -> str:
    """Returns in words how a process ended.

    Args:
        status: Its exit status; negative is the signal that killed it.
    """
    if status >= 0:
        return f"it ended with status {status}"
    try:
        return f"it was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"it was killed by signal {-status}"


async def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
