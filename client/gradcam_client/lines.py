"""Which connection each attempt takes, and what it carries, without I/O.

call or stream -> Route -> Lines -> Line (a channel to one server) -> attempt
^                                          |
`-- a server that refused rests a while  <-'
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client.errors import (
    GradCamError,
    OverloadedError,
    UnavailableError,
    closed_error,
    from_rpc_error,
)
from gradcam_client.retry import RetryPolicy
from gradcam_client.tracing import trace_metadata
from gradcam_client.transport import RECONNECT_S, Metadata, Token, bearer, make_request_id
from gradcam_client.unreachable import explained


@dataclass(slots=True, eq=False)
class Line:
    """One channel, of ``grpc`` or of ``grpc.aio``, with its stubs.

    Attributes:
        server: The number of the server it leads to.
        target: The gRPC target of that server; empty if the channel was the caller's.
        channel: The channel.
        load: Attempts and streams that are under way.
    """

    server: int
    target: str
    channel: Any
    load: int = 0
    service: Any = field(init=False)
    health: Any = field(init=False)

    def __post_init__(self) -> None:
        self.service = pb_grpc.ExplanationServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)


class Lines:
    """All lines of a client. Safe for threads.

    A line is taken for each attempt: of a server that does not rest, where the call has not
    been before, with the least load, in turn. A server that refused rests for as long as
    it asked for, one without a connection for as long as it takes to connect again; while all
    rest, all are asked.

    Channels serve only the process, or the event loop, in which they were opened.

    Args:
        open_channels: Opens the channels: (number of the server, its target, channel) of each.
        home: Returns where we are: the process, or the running event loop.
        elsewhere: The error where channels are used in another one.
    """

    def __init__(
        self,
        open_channels: Callable[[], Sequence[tuple[int, str, Any]]],
        home: Callable[[], object] = os.getpid,
        elsewhere: str = "",
    ) -> None:
        self._open_channels = open_channels
        self._home, self._elsewhere = home, elsewhere
        self._opened_in: object = None
        self._lock = threading.Lock()
        self._turn = 0
        self._rests_until: dict[int, float] = {}
        self.all: tuple[Line, ...] = ()
        self.closed = False

    def open(self) -> None:
        """Opens the channels unless they are open.

        Raises:
            CallCancelledError: They are closed.
            RuntimeError: They were opened in another process or event loop.
        """
        home = self._home()
        if self.closed:
            raise closed_error()
        if self._opened_in is None:
            self.all = tuple(Line(*opened) for opened in self._open_channels())
            self._rests_until = {line.server: 0.0 for line in self.all}
            self._opened_in = home
        elif self._opened_in != home:
            raise RuntimeError(self._elsewhere)

    def close(self) -> list[Any]:
        """Takes no attempts any more.

        Returns:
            The channels, to be closed; none if there were none or this was done before.

        Raises:
            RuntimeError: As of ``open``.
        """
        if self.closed or self._opened_in is None:
            self.closed = True
            return []
        self.open()
        self.closed = True
        return [line.channel for line in self.all]

    def take(self, tried: Counter[Line], now: float) -> Line:
        """Counts an attempt on the best line after those that a call has tried.

        Raises:
            CallCancelledError: As of ``open``.
            RuntimeError: As of ``open``.
        """
        self.open()
        tried_servers: Counter[int] = Counter()
        for line, count in tried.items():
            tried_servers[line.server] += count
        with self._lock:
            number = min(
                range(len(self.all)),
                key=lambda number: (
                    self._rests_until[self.all[number].server] > now,
                    tried_servers[self.all[number].server],
                    tried[self.all[number]],
                    self.all[number].load,
                    (number - self._turn) % len(self.all),
                ),
            )
            self._turn = number + 1
            line = self.all[number]
            line.load += 1
            return line

    def release(self, line: Line) -> None:
        """Notes that an attempt has ended."""
        with self._lock:
            line.load -= 1

    def failed(self, line: Line, error: GradCamError, now: float) -> None:
        """Lets the line's server rest if it may be better off later."""
        rest_s = error.retry_after_s or 0.0
        if isinstance(error, UnavailableError):
            rest_s = max(rest_s, RECONNECT_S)
        elif not isinstance(error, OverloadedError):
            return
        with self._lock:
            self._rests_until[line.server] = max(self._rests_until[line.server], now + rest_s)

    def rested_in_s(self, now: float) -> float:
        """Returns in how many seconds some server has rested."""
        with self._lock:
            return max(0.0, min(self._rests_until.values(), default=0.0) - now)


class Route:
    """The way of one call or stream: where its attempts go, and what they carry.

    Made where the user called us, it belongs to the trace that is current there.

    Args:
        lines: The client's.
        token: Sent with each attempt.
        request_id: The name of the call in the server's log; None makes one.

    Raises:
        ValueError: A request id that cannot be sent.
    """

    def __init__(self, lines: Lines, token: Token | None, request_id: str | None = None) -> None:
        self._lines = lines
        self._token = token
        self._tried: Counter[Line] = Counter()
        self.request_id = make_request_id(request_id)
        self._trace = trace_metadata()

    def metadata(self) -> Metadata:
        """Returns what the next attempt carries beside the request.

        Raises:
            ValueError: A token that cannot be sent.
        """
        named = (("x-request-id", self.request_id), *self._trace)
        if self._token is None:
            return named
        token = self._token if isinstance(self._token, str) else self._token()
        return (*named, ("authorization", bearer(token)))

    def begin(self) -> Line:
        """Takes the line of the next attempt; to be followed by ``end``."""
        line = self._lines.take(self._tried, time.monotonic())
        self._tried[line] += 1
        return line

    def end(self, line: Line) -> None:
        """Gives a line back."""
        self._lines.release(line)

    def failed(self, line: Line, error: GradCamError) -> GradCamError:
        """Notes what an attempt ended in; returns it with the call's name, in clear words."""
        error = explained(error, line.target)
        error.request_id = self.request_id
        self._lines.failed(line, error, time.monotonic())
        return error

    @property
    def rested_in_s(self) -> float:
        """In how many seconds some server has rested."""
        return self._lines.rested_in_s(time.monotonic())

    @contextmanager
    def unless_closed(self) -> Iterator[None]:
        """Begins a call: where the client has just been closed, gRPC's error becomes ours."""
        try:
            yield
        except (ValueError, grpc.aio.UsageError):
            if not self._lines.closed:
                raise
            raise closed_error() from None

    @contextmanager
    def attempt(self) -> Iterator[Line]:
        """Makes an attempt: takes a line and gives it back; its error becomes ours."""
        line = self.begin()
        try:
            with self.unless_closed():
                yield line
        except grpc.RpcError as error:
            raise self.failed(line, from_rpc_error(error)) from error
        except GradCamError as error:
            self.failed(line, error)
            raise
        finally:
            self.end(line)


class Call(Route):
    """A call with one answer: its attempts have one deadline.

    Args:
        lines: The client's.
        token: Sent with each attempt.
        request_id: The name of the call in the server's log; None makes one.
        policy: When to try again.
        timeout_s: The deadline of all attempts, in seconds.
    """

    def __init__(
        self,
        lines: Lines,
        token: Token | None,
        request_id: str | None,
        policy: RetryPolicy,
        timeout_s: float,
    ) -> None:
        super().__init__(lines, token, request_id)
        self._policy = policy
        self._deadline = time.monotonic() + timeout_s
        self._failures = 0

    def options(self) -> dict[str, Any]:
        """Returns how to call: the server is told the time that is left."""
        return {"timeout": self._deadline - time.monotonic(), "metadata": self.metadata()}

    def pause_s(self, error: GradCamError) -> float | None:
        """Returns the pause before another attempt in seconds; None: the error is final."""
        self._failures += 1
        remaining_s = self._deadline - time.monotonic()
        return self._policy.pause_s(error, self._failures, remaining_s, self.rested_in_s)
