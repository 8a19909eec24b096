"""Which connection each attempt takes, and what it carries, without I/O.

call or stream -> Route -> Lines -> Line (a channel to one server) -> attempt
^                                          |
`-- a server that refused rests a while  <-'
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client.errors import GradCamError, OverloadedError, UnavailableError, from_rpc_error
from gradcam_client.retry import RetryPolicy
from gradcam_client.tracing import trace_metadata
from gradcam_client.transport import RECONNECT_S, Metadata, Token, bearer, make_request_id


@dataclass(slots=True, eq=False)
class Line:
    """One channel, of ``grpc`` or of ``grpc.aio``, with its stubs.

    Attributes:
        server: The number of the server it leads to.
        channel: The channel.
        load: Attempts and streams that are under way.
    """

    server: int
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

    Args:
        channels: (number of the server, channel) of each line.
    """

    def __init__(self, channels: Sequence[tuple[int, Any]]) -> None:
        self.all = tuple(Line(server, channel) for server, channel in channels)
        self._lock = threading.Lock()
        self._rests_until = {line.server: 0.0 for line in self.all}
        self._turn = 0

    def take(self, tried: Counter[Line], now: float) -> Line:
        """Counts an attempt on the best line after those that a call has tried."""
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
            return max(0.0, min(self._rests_until.values()) - now)


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
        """Notes what an attempt ended in, and names the call in it."""
        error.request_id = self.request_id
        self._lines.failed(line, error, time.monotonic())
        return error

    @property
    def rested_in_s(self) -> float:
        """In how many seconds some server has rested."""
        return self._lines.rested_in_s(time.monotonic())

    @contextmanager
    def attempt(self) -> Iterator[Line]:
        """Makes an attempt: takes a line and gives it back; its error becomes ours."""
        line = self.begin()
        try:
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
