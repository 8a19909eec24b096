"""The first front end's view of the others: starts them, and those again that are lost."""

import asyncio
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

from gradcam_server.config import ServeConfig
from gradcam_server.engine_process.door import hand_over, make_door
from gradcam_server.engine_process.messages import receive, send
from gradcam_server.engine_process.remote import RemoteComputer, ended
from gradcam_server.errors import EngineLostError, StartupError
from gradcam_server.front_ends.messages import (
    Announce,
    Beat,
    Begin,
    CutOff,
    Drain,
    Failed,
    Join,
    Joined,
    Listen,
    Listening,
)
from gradcam_server.metrics import Metrics
from gradcam_server.native_lines import stderr_for_children

logger = logging.getLogger(__name__)

_CLOSE_S = 5.0
_DRAIN_MARGIN_S = 5.0
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_STABLE_S = 30.0


class OtherFrontEnds:
    """The processes beside the first that speak gRPC on its port; there may be none.

    Args:
        config: The settings.
        metrics: Told how they are; adds their counters to its own.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._count = config.frontends - 1
        self._port = 0
        self._folder = ""
        self._engine: tuple[int, ServeConfig, RemoteComputer] | None = None
        self._announced = False
        self._draining = asyncio.Event()
        self._all_listen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._members: dict[int, _Member] = {}
        self._keepers: list[asyncio.Task[bool]] = []

    @property
    def queue_length(self) -> int:
        """Their requests that are admitted and not yet on the device."""
        return sum(one.beat.queue_length for one in list(self._members.values()))

    @property
    def in_work(self) -> int:
        """Their requests in work."""
        return sum(one.beat.in_work for one in list(self._members.values()))

    def start(self, port: int) -> None:
        """Starts them, to listen on a port; ``wait_listening`` waits for it.

        Raises:
            StartupError: There is no folder for their counters.
        """
        self._metrics.set_front_ends(1)
        if not self._count:
            self._all_listen.set_result(None)
            return
        try:
            self._folder = tempfile.mkdtemp(prefix="gradcam-metrics-")
        except OSError as error:
            raise StartupError(
                f"--frontends needs a folder for temporary files (TMPDIR): {error.strerror}"
            ) from error
        self._port = port
        for number in range(1, self._count + 1):
            task = asyncio.create_task(self._keep(number), name=f"keeper of front end {number}")
            self._keepers.append(task)

    async def wait_listening(self) -> None:
        """Returns once all listen.

        Raises:
            StartupError: One cannot.
        """
        await asyncio.shield(self._all_listen)

    async def share(self, config: ServeConfig, computer: RemoteComputer) -> None:
        """Returns once all that live ask this engine, and let requests in."""
        if not self._count:
            return
        await self.wait_listening()
        number = self._engine[0] + 1 if self._engine else 1
        self._engine = (number, config, computer)
        await asyncio.gather(*(one.join(*self._engine) for one in list(self._members.values())))

    def announce(self) -> None:
        """Lets them tell by grpc.health.v1 that requests are let in."""
        if self._count and not self._announced:
            self._announced = True
            self._metrics.add_processes(self._folder)
        for one in self._members.values():
            one.tell(Announce())

    async def drain(self, force: asyncio.Event) -> bool:
        """Lets them answer what is in work, and end.

        Args:
            force: Once set, they end at once.

        Returns:
            Whether they have answered all.
        """
        self._draining.set()
        for one in list(self._members.values()):
            one.tell(Drain())
        forcing = asyncio.create_task(self._force(force))
        if self._keepers:
            timeout_s = self._config.drain_timeout_s + _DRAIN_MARGIN_S
            await asyncio.wait(self._keepers, timeout=timeout_s)
        forcing.cancel()
        return all(one.done() and not one.cancelled() and one.result() for one in self._keepers)

    async def close(self) -> None:
        """Ends them."""
        self._draining.set()
        for one in list(self._members.values()):
            one.hang_up()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=_CLOSE_S)
        for keeper in self._keepers:
            keeper.cancel()  # kills
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _force(self, force: asyncio.Event) -> None:
        await force.wait()
        for one in list(self._members.values()):
            one.tell(CutOff())

    async def _keep(self, number: int) -> bool:
        """Runs one again and again until the server drains; returns whether it has drained."""
        pause_s = _FIRST_PAUSE_S
        while not self._draining.is_set():
            began = perf_counter()
            try:
                status, reason = await self._run(number)
            except OSError as error:
                status, reason = 1, f"no process could be started ({error.strerror})"
            if self._draining.is_set():
                return status == 0
            if not self._all_listen.done():
                self._all_listen.set_exception(
                    StartupError(f"front end {number} cannot start: {reason}")
                )
                return False
            logger.error("Front end %d was lost: %s; starting it again", number, reason)
            self._metrics.front_end_restarted()
            if perf_counter() - began > _STABLE_S:
                pause_s = _FIRST_PAUSE_S
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._draining.wait()
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        return True

    async def _run(self, number: int) -> tuple[int, str]:
        """Runs one to its end; returns its exit status, and why it ended."""
        member = await _Member.start(Begin(self._config, number, self._folder), self._on_beat)
        self._members[number] = member
        if self._draining.is_set():
            member.tell(Drain())
        introducing = asyncio.create_task(self._introduce(member))
        try:
            return await member.wait()
        finally:
            introducing.cancel()
            del self._members[number]
            self._count_listening()
            self._metrics.set_front_end_resident(number, 0)

    async def _introduce(self, member: "_Member") -> None:
        """Lets one that has just started into the company of the others."""
        if self._engine is not None:
            # Until it can answer, its part of the connections is better off with the others.
            await member.join(*self._engine)
            await member.joined.wait()
        member.tell(Listen(self._port))
        await member.listening.wait()
        logger.info("Front end %d listens", member.number)
        if self._announced:
            member.tell(Announce())
        if self._count_listening() == self._count and not self._all_listen.done():
            self._all_listen.set_result(None)

    def _on_beat(self, number: int, beat: Beat) -> None:
        self._metrics.set_front_end_resident(number, beat.resident_bytes)

    def _count_listening(self) -> int:
        count = sum(one.listening.is_set() for one in self._members.values())
        self._metrics.set_front_ends(1 + count)
        return count


class _Member:
    """One of the others, while its process lives.

    Attributes:
        beat: What it told last.
        joined: Set once it asks an engine.
        listening: Set once it listens.
        number: Its number.
    """

    def __init__(
        self,
        begin: Begin,
        process: asyncio.subprocess.Process,
        control: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        door: socket.socket,
        on_beat: Callable[[int, Beat], None],
    ) -> None:
        self.number, self._process, self._door = begin.number, process, door
        self._reader, self._writer = control
        self._on_beat, self._watchdog_s = on_beat, begin.config.watchdog_s
        self._reason, self._heard_at = "", perf_counter()
        self._joins: dict[int, asyncio.Future[None]] = {}
        self.beat = Beat(0, 0, 0)
        self.joined, self.listening = asyncio.Event(), asyncio.Event()
        send(self._writer, begin)

    @classmethod
    async def start(cls, begin: Begin, on_beat: Callable[[int, Beat], None]) -> "_Member":
        """Starts a process."""
        ours, theirs = socket.socketpair()
        door, its_door = make_door()
        inherited = (theirs.fileno(), its_door.fileno(), *stderr_for_children())
        with theirs, its_door:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gradcam_server.front_ends.main"),
                *map(str, inherited),
                pass_fds=inherited,
            )
        try:
            control = await asyncio.open_connection(sock=ours)
        except BaseException:
            process.kill()
            raise
        return cls(begin, process, control, door, on_beat)

    def tell(self, message: object) -> None:
        """Sends a message; if it is gone, it is lost."""
        send(self._writer, message)

    async def join(self, number: int, config: ServeConfig, computer: RemoteComputer) -> None:
        """Lets it ask an engine; returns once it does, or it or the engine is gone."""
        if number in self._joins:
            await asyncio.wait({self._joins[number]})
            return
        try:
            connection, memory = computer.let_in()
        except EngineLostError:
            return
        try:
            with connection:
                hand_over(self._door, connection.fileno(), memory)
        except OSError:
            return  # its end is noticed elsewhere
        finally:
            os.close(memory)
        self._joins[number] = asyncio.get_running_loop().create_future()
        self.tell(Join(config, number, computer.started_in_s))
        await asyncio.wait({self._joins[number]})

    async def wait(self) -> tuple[int, str]:
        """Returns its exit status and why it ended, when it has. If cancelled, it is killed."""
        listening = asyncio.create_task(self._listen())
        watching = asyncio.create_task(self._watch())
        try:
            status = await self._process.wait()
            await listening  # to what it said last
        except BaseException:
            self._process.kill()
            await self._process.wait()
            raise
        finally:
            listening.cancel()
            watching.cancel()
            self.hang_up()
            self._door.close()
            for one in self._joins.values():
                one.cancel()
        return status, self._reason or ended(status)

    def hang_up(self) -> None:
        """Ends it."""
        self._writer.close()

    async def _listen(self) -> None:
        with suppress(EOFError):
            while True:
                self._take(await receive(self._reader))

    def _take(self, message: object) -> None:
        self._heard_at = perf_counter()
        match message:
            case Listening():
                self.listening.set()
            case Failed(message=text):
                self._reason = text
                self._process.kill()
            case Joined(engine):
                self.joined.set()
                if not (join := self._joins[engine]).done():
                    join.set_result(None)
            case Beat() as beat:
                self.beat = beat
                self._on_beat(self.number, beat)

    async def _watch(self) -> None:
        """Kills one that hangs."""
        interval_s = min(self._watchdog_s / 4, 1)
        while True:
            asleep_at = perf_counter()
            await asyncio.sleep(interval_s)
            now = perf_counter()
            if now - asleep_at > 2 * interval_s:
                self._heard_at = now  # it is we who were stopped, perhaps with the whole machine
            silent_s = now - self._heard_at
            if silent_s > self._watchdog_s:
                self._reason = f"nothing was heard of it for {silent_s:.0f} s (--watchdog-s)"
                self._process.kill()
                return
