"""The first front end's view of the others: starts them, and those again that are lost."""

import asyncio
import logging
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial

from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.ipc.child_process import (
    BACKOFF,
    CLOSE_S,
    Backoff,
    ChildProcess,
    Watchdog,
    keep_running,
)
from gradcam_server.engine.ipc.fd_passing import fd_socket_pair, send_fds
from gradcam_server.engine.ipc.messages import GarbledError, receive, send
from gradcam_server.engine.ipc.process import RemoteBackend
from gradcam_server.errors import EngineLostError, StartupError, failure_reason
from gradcam_server.serving.front_ends.messages import (
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
from gradcam_server.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_MODULE = "gradcam_server.serving.front_ends.main"
_DRAIN_MARGIN_S = 5.0


class OtherFrontEnds:
    """The processes beside the first that speak gRPC on its port; there may be none.

    Args:
        config: The settings.
        metrics: Told how they are; adds their counters to its own.
        backoff: The pauses before one that is lost, or cannot start, is started again.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics, backoff: Backoff = BACKOFF) -> None:
        self._config, self._metrics, self._backoff = config, metrics, backoff
        self._count = config.frontends - 1
        self._port = 0
        self._folder = ""
        self._engine: tuple[int, ServeConfig, RemoteBackend] | None = None
        self._announced = False
        self._draining = asyncio.Event()
        self._all_listen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._members: dict[int, _Member] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._cut_off = False

    @property
    def queue_lengths(self) -> Counter[str]:
        """Their requests that are admitted and not yet on the device, by queue."""
        lengths = Counter[str]()
        for one in list(self._members.values()):
            lengths.update(one.beat.queue_lengths)
        return lengths

    @property
    def in_work(self) -> int:
        """Their requests in work."""
        return sum(one.beat.in_work for one in list(self._members.values()))

    def held(self, state: str) -> int:
        """Returns the bytes that their requests hold in a state."""
        return sum(one.beat.held.get(state, 0) for one in list(self._members.values()))

    @property
    def thread_counts(self) -> Counter[str]:
        """Their threads that decode or render, by state."""
        counts = Counter[str]()
        for one in list(self._members.values()):
            counts.update(one.beat.threads)
        return counts

    @property
    def is_supervised(self) -> bool:
        """Whether those that are lost are started again, or the server drains."""
        return self._draining.is_set() or not any(one.done() for one in self._keepers)

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
            keeping = keep_running(
                f"Front end {number}",
                partial(self._run, number),
                self._draining,
                partial(self._on_loss, number),
                self._backoff,
            )
            self._keepers.append(asyncio.create_task(keeping, name=f"keeper of {number}"))

    async def wait_listening(self) -> None:
        """Returns once all listen.

        Raises:
            StartupError: One cannot.
        """
        await asyncio.shield(self._all_listen)

    async def share(self, config: ServeConfig, backend: RemoteBackend) -> None:
        """Returns once all that live ask this engine, and let requests in."""
        if not self._count:
            return
        await self.wait_listening()
        number = self._engine[0] + 1 if self._engine else 1
        self._engine = (number, config, backend)
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
        return all(one.done() for one in self._keepers) and not self._cut_off

    async def close(self) -> None:
        """Ends them."""
        self._draining.set()
        for one in list(self._members.values()):
            one.hang_up()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=CLOSE_S)
        for keeper in self._keepers:
            keeper.cancel()  # kills
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _force(self, force: asyncio.Event) -> None:
        await force.wait()
        for one in list(self._members.values()):
            one.tell(CutOff())

    def _on_loss(self, number: int, reason: str) -> None:
        if self._all_listen.done():
            self._metrics.front_end_restarted()
            return
        # The settings may be wrong: the server does not start.
        error = StartupError(f"front end {number} cannot start: {reason}")
        self._all_listen.set_exception(error)
        self._draining.set()

    async def _run(self, number: int) -> str:
        """Runs one to its end; returns why it ended."""
        member = await _Member.start(Begin(self._config, number, self._folder), self._on_beat)
        self._members[number] = member
        if self._draining.is_set():
            member.tell(Drain())
        introducing = asyncio.create_task(self._introduce(member))
        try:
            status, reason = await member.wait()
            if self._draining.is_set() and status:
                self._cut_off = True
            return reason
        finally:
            introducing.cancel()
            del self._members[number]
            self._count_listening()
            self._metrics.set_front_end_resident(number, 0)

    async def _introduce(self, member: "_Member") -> None:
        """Lets one that has just started into the company of the others; kills it on a fault."""
        try:
            await self._let_in(member)
        except Exception as error:
            logger.exception("Front end %d could not be let in", member.number)
            member.kill(f"it could not be let in: {failure_reason(error)}")

    async def _let_in(self, member: "_Member") -> None:
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
        child: ChildProcess,
        door: socket.socket,
        on_beat: Callable[[int, Beat], None],
    ) -> None:
        self.number, self._child, self._door = begin.number, child, door
        self._on_beat, self._watchdog = on_beat, Watchdog(begin.config.watchdog_s)
        self._joins: dict[int, asyncio.Future[None]] = {}
        self._failure = ""
        self.beat = Beat({}, 0, 0, {}, {})
        self.joined, self.listening = asyncio.Event(), asyncio.Event()
        self.tell(begin)

    @classmethod
    async def start(cls, begin: Begin, on_beat: Callable[[int, Beat], None]) -> "_Member":
        """Starts a process.

        Raises:
            OSError: There is no descriptor, process or memory left.
        """
        door, their_fd_socket = fd_socket_pair()
        try:
            with their_fd_socket:
                child = await ChildProcess.spawn(_MODULE, their_fd_socket.fileno())
        except BaseException:
            door.close()
            raise
        return cls(begin, child, door, on_beat)

    def tell(self, message: object) -> None:
        """Sends a message; if it is gone, it is lost."""
        send(self._child.writer, message)

    async def join(self, number: int, config: ServeConfig, backend: RemoteBackend) -> None:
        """Lets it ask an engine; returns once it does, or it or the engine is gone.

        It is killed if there are no descriptors for it: without an engine it would only refuse.
        """
        if number in self._joins:
            await asyncio.wait({self._joins[number]})
            return
        try:
            self._hand_over(*backend.let_in())
        except (EngineLostError, ConnectionError):
            return  # the end of either is noticed elsewhere
        except OSError as error:
            self.kill(f"it could not be given the engine: {failure_reason(error)}")
            return
        self._joins[number] = asyncio.get_running_loop().create_future()
        self.tell(Join(config, number, backend.started_in_s))
        await asyncio.wait({self._joins[number]})

    async def wait(self) -> tuple[int, str]:
        """Returns its exit status and why it ended, when it has. If cancelled, it is killed."""
        listening = asyncio.create_task(self._listen())
        watching = asyncio.create_task(self._watch())
        try:
            status, reason = await self._child.wait()
            await listening  # to what it said last
        finally:
            listening.cancel()
            watching.cancel()
            await self._child.close(0)
            self._door.close()
            for one in self._joins.values():
                one.cancel()
        return status, self._failure or reason

    def kill(self, reason: str) -> None:
        """Ends it at once; ``wait`` tells the reason."""
        self._child.kill(reason)

    def hang_up(self) -> None:
        """Ends it."""
        self._child.hang_up()

    def _hand_over(self, connection: socket.socket, memory: int) -> None:
        try:
            with connection:
                send_fds(self._door, connection.fileno(), memory)
        finally:
            os.close(memory)

    async def _listen(self) -> None:
        try:
            while True:
                self._take(await receive(self._child.reader))
        except EOFError:
            pass
        except GarbledError as error:
            self.kill(str(error))
        except Exception as error:
            logger.exception("A message of front end %d could not be taken in", self.number)
            self.kill(f"its message could not be taken in ({error!r})")

    async def _watch(self) -> None:
        """Kills one that hangs."""
        self.kill(await self._watchdog.wait())

    def _take(self, message: object) -> None:
        self._watchdog.heard()
        match message:
            case Listening():
                self.listening.set()
            case Failed(message=text):
                self._failure = text
                self.kill(text)
            case Joined(engine):
                self.joined.set()
                if not (join := self._joins[engine]).done():
                    join.set_result(None)
            case Beat() as beat:
                self.beat = beat
                self._on_beat(self.number, beat)
