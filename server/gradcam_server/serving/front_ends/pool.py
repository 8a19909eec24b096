"""The first front end's view of the others: starts them and restarts those that are lost."""

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
    Begin,
    CutOff,
    Drain,
    Failed,
    Heartbeat,
    Join,
    Joined,
    Listen,
    Listening,
    Probe,
    Probed,
)
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.transport.http.probe_answer import Probe as AnswerProbe

logger = logging.getLogger(__name__)

_MODULE = "gradcam_server.serving.front_ends.main"
_DRAIN_MARGIN_S = 5.0


class FrontEndPool:
    """The front ends beside the first, each a process; there may be none.

    Args:
        config: The settings.
        metrics: Receives their state; adds their counters to its own.
        backoff: The pauses before a front end that is lost, or cannot start, is started again.

    Attributes:
        probe: Answers the probes that reach the other front ends.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics, backoff: Backoff = BACKOFF) -> None:
        self._config, self._metrics, self._backoff = config, metrics, backoff
        self._count = config.frontends - 1
        self._ports = Listen(0)
        self.probe: AnswerProbe | None = None
        self._folder = ""
        self._engine: tuple[int, ServeConfig, RemoteBackend] | None = None
        self._announced = False
        self._draining = asyncio.Event()
        self._all_listen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._members: dict[int, _Member] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._cut_off = False
        self._probing: set[asyncio.Task[None]] = set()

    @property
    def queue_lengths(self) -> Counter[str]:
        """Their requests that are admitted and not yet on the device, by queue."""
        lengths = Counter[str]()
        for member in list(self._members.values()):
            lengths.update(member.heartbeat.queue_lengths)
        return lengths

    @property
    def in_work(self) -> int:
        """Their requests in work."""
        return sum(member.heartbeat.in_work for member in list(self._members.values()))

    def held(self, state: str) -> int:
        """Returns the bytes that their requests hold in a state."""
        return sum(member.heartbeat.held.get(state, 0) for member in list(self._members.values()))

    @property
    def thread_counts(self) -> Counter[str]:
        """Their threads that decode or render, by state."""
        counts = Counter[str]()
        for member in list(self._members.values()):
            counts.update(member.heartbeat.threads)
        return counts

    @property
    def pids(self) -> list[int]:
        """The process ids of the front ends that run."""
        return [member.pid for member in self._members.values()]

    @property
    def is_supervised(self) -> bool:
        """Whether lost front ends are started again, or the server drains."""
        return self._draining.is_set() or not any(keeper.done() for keeper in self._keepers)

    def start(self, port: int, http_port: int | None = None) -> None:
        """Starts the front ends, to listen on the ports; ``wait_listening`` waits for that.

        Args:
            port: The gRPC port.
            http_port: The HTTP port; None if there is none.

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
        self._ports = Listen(port, http_port)
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
            StartupError: A front end cannot.
        """
        await asyncio.shield(self._all_listen)

    async def share(self, config: ServeConfig, backend: RemoteBackend) -> None:
        """Returns once all running front ends use this engine and admit requests."""
        if not self._count:
            return
        await self.wait_listening()
        number = self._engine[0] + 1 if self._engine else 1
        self._engine = (number, config, backend)
        await asyncio.gather(
            *(member.join(*self._engine) for member in list(self._members.values()))
        )

    def announce(self) -> None:
        """Lets them report SERVING by grpc.health.v1."""
        if self._count and not self._announced:
            self._announced = True
            self._metrics.add_processes(self._folder)
        for member in self._members.values():
            member.tell(Announce())

    async def drain(self, force: asyncio.Event) -> bool:
        """Lets them answer the requests in work, and end.

        Args:
            force: Once set, they end at once.

        Returns:
            Whether all requests in work were answered.
        """
        self._draining.set()
        for member in list(self._members.values()):
            member.tell(Drain())
        forcing = asyncio.create_task(self._force(force))
        if self._keepers:
            timeout_s = self._config.drain_timeout_s + _DRAIN_MARGIN_S
            await asyncio.wait(self._keepers, timeout=timeout_s)
        forcing.cancel()
        return all(keeper.done() for keeper in self._keepers) and not self._cut_off

    async def close(self) -> None:
        """Ends all."""
        self._draining.set()
        for member in list(self._members.values()):
            member.hang_up()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=CLOSE_S)
        for keeper in self._keepers:
            keeper.cancel()  # kills
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _force(self, force: asyncio.Event) -> None:
        await force.wait()
        for member in list(self._members.values()):
            member.tell(CutOff())

    def _on_loss(self, number: int, reason: str) -> None:
        if self._all_listen.done():
            self._metrics.front_end_restarted()
            return
        # The settings may be wrong: the server does not start.
        error = StartupError(f"front end {number} cannot start: {reason}")
        self._all_listen.set_exception(error)
        self._draining.set()

    async def _run(self, number: int) -> str:
        """Runs a front end to its end; returns why it ended."""
        begin = Begin(self._config, number, self._folder)
        member = await _Member.start(begin, self._on_heartbeat, self._on_probe)
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
        """Lets a new front end join the engine and listen; kills it on a fault."""
        try:
            await self._let_in(member)
        except Exception as error:
            logger.exception("Front end %d could not join", member.number)
            member.kill(f"it could not join: {failure_reason(error)}")

    async def _let_in(self, member: "_Member") -> None:
        if self._engine is not None:
            # Until it can answer, the others get its part of the connections.
            await member.join(*self._engine)
            await member.joined.wait()
        member.tell(self._ports)
        await member.listening.wait()
        logger.info("Front end %d listens", member.number)
        if self._announced:
            member.tell(Announce())
        if self._count_listening() == self._count and not self._all_listen.done():
            self._all_listen.set_result(None)

    def _on_heartbeat(self, number: int, heartbeat: Heartbeat) -> None:
        self._metrics.set_front_end_resident(number, heartbeat.resident_bytes)

    def _on_probe(self, member: "_Member", probe: Probe) -> None:
        task = asyncio.create_task(self._answer_probe(member, probe))
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)

    async def _answer_probe(self, member: "_Member", probe: Probe) -> None:
        assert self.probe is not None  # who listens on the HTTP port sets it
        member.tell(Probed(probe.number, await self.probe(probe.path, probe.accept)))

    def _count_listening(self) -> int:
        count = sum(member.listening.is_set() for member in self._members.values())
        self._metrics.set_front_ends(1 + count)
        return count


class _Member:
    """Another front end, while its process runs.

    Attributes:
        heartbeat: The latest heartbeat.
        joined: Set once it uses an engine.
        listening: Set once it listens.
        number: The number of the front end.
    """

    def __init__(
        self,
        begin: Begin,
        child: ChildProcess,
        fd_socket: socket.socket,
        on_heartbeat: Callable[[int, Heartbeat], None],
        on_probe: "Callable[[_Member, Probe], None]",
    ) -> None:
        self._on_probe = on_probe
        self.number, self._child, self._fd_socket = begin.number, child, fd_socket
        self._on_heartbeat, self._watchdog = on_heartbeat, Watchdog(begin.config.watchdog_s)
        self._joins: dict[int, asyncio.Future[None]] = {}
        self._failure = ""
        self.heartbeat = Heartbeat({}, 0, 0, {}, {})
        self.joined, self.listening = asyncio.Event(), asyncio.Event()
        self.tell(begin)

    @classmethod
    async def start(
        cls,
        begin: Begin,
        on_heartbeat: Callable[[int, Heartbeat], None],
        on_probe: "Callable[[_Member, Probe], None]",
    ) -> "_Member":
        """Starts a process.

        Raises:
            OSError: There is no descriptor, process or memory left.
        """
        fd_socket, their_fd_socket = fd_socket_pair()
        try:
            with their_fd_socket:
                child = await ChildProcess.spawn(_MODULE, their_fd_socket.fileno())
        except BaseException:
            fd_socket.close()
            raise
        return cls(begin, child, fd_socket, on_heartbeat, on_probe)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    def tell(self, message: object) -> None:
        """Sends a message; it is lost if the process is gone."""
        send(self._child.writer, message)

    async def join(self, number: int, config: ServeConfig, backend: RemoteBackend) -> None:
        """Lets it use an engine; returns once it does, or it or the engine is gone.

        It is killed if there are no descriptors for it: without an engine it would refuse all.
        """
        if number in self._joins:
            await asyncio.wait({self._joins[number]})
            return
        try:
            self._send_engine(*backend.let_in())
        except (EngineLostError, ConnectionError):
            return  # the end of either is noticed elsewhere
        except OSError as error:
            self.kill(f"it could not be given the engine: {failure_reason(error)}")
            return
        self._joins[number] = asyncio.get_running_loop().create_future()
        self.tell(Join(config, number, backend.started_in_s))
        await asyncio.wait({self._joins[number]})

    async def wait(self) -> tuple[int, str]:
        """Waits for its end; returns the exit status and the reason. If cancelled, it is killed."""
        listening = asyncio.create_task(self._listen())
        watching = asyncio.create_task(self._watch())
        try:
            status, reason = await self._child.wait()
            await listening  # until its last message
        finally:
            listening.cancel()
            watching.cancel()
            await self._child.close(0)
            self._fd_socket.close()
            for join in self._joins.values():
                join.cancel()
        return status, self._failure or reason

    def kill(self, reason: str) -> None:
        """Kills it; ``wait`` returns the reason."""
        self._child.kill(reason)

    def hang_up(self) -> None:
        """Asks it to end."""
        self._child.hang_up()

    def _send_engine(self, connection: socket.socket, shared_fd: int) -> None:
        try:
            with connection:
                send_fds(self._fd_socket, connection.fileno(), shared_fd)
        finally:
            os.close(shared_fd)

    async def _listen(self) -> None:
        try:
            while True:
                self._handle(await receive(self._child.reader))
        except EOFError:
            pass
        except GarbledError as error:
            self.kill(str(error))
        except Exception as error:
            logger.exception("A message of front end %d could not be handled", self.number)
            self.kill(f"its message could not be handled ({error!r})")

    async def _watch(self) -> None:
        """Kills a process that hangs."""
        self.kill(await self._watchdog.wait())

    def _handle(self, message: object) -> None:
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
            case Heartbeat() as heartbeat:
                self.heartbeat = heartbeat
                self._on_heartbeat(self.number, heartbeat)
            case Probe() as probe:
                self._on_probe(self, probe)
