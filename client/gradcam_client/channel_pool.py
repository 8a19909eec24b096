"""Chooses the channel of each attempt and what the attempt carries, without I/O.

    call or stream -> Route -> ChannelPool -> PooledChannel (to one server) -> attempt

A server that refuses an attempt is avoided for a while.
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
class PooledChannel:
    """One channel of ``grpc`` or ``grpc.aio``, with its stubs.

    Attributes:
        server: The number of the server that the channel leads to.
        target: The gRPC target of that server; empty if the user passed the channel.
        grpc_channel: The channel.
        load: Number of attempts and streams under way.
    """

    server: int
    target: str
    grpc_channel: Any
    load: int = 0
    service: Any = field(init=False)
    health: Any = field(init=False)

    def __post_init__(self) -> None:
        self.service = pb_grpc.ExplanationServiceStub(self.grpc_channel)
        self.health = health_pb2_grpc.HealthStub(self.grpc_channel)


class ChannelPool:
    """All channels of a client. Safe for threads.

    Each attempt gets the channel that is best by, in this order: its server is not avoided; the
    call has tried that server, then that channel, least often; it has the lowest load; round
    robin. A server that refused is avoided for as long as it asked for, a server without a
    connection for as long as gRPC takes to connect again. If all servers are avoided, all are
    used.

    Channels work only in the process, or the event loop, in which they were opened.

    Args:
        open_channels: Opens the channels; returns (number of the server, its target, channel)
            of each.
        get_owner: Returns the current process id or event loop.
        wrong_owner: The text of the error if another process or event loop opened the channels.
    """

    def __init__(
        self,
        open_channels: Callable[[], Sequence[tuple[int, str, Any]]],
        get_owner: Callable[[], object] = os.getpid,
        wrong_owner: str = "",
    ) -> None:
        self._open_channels = open_channels
        self._get_owner, self._wrong_owner = get_owner, wrong_owner
        self._owner: object = None
        self._lock = threading.Lock()
        self._next = 0
        self._avoided_until: dict[int, float] = {}
        self.all: tuple[PooledChannel, ...] = ()
        self.closed = False

    def open(self) -> None:
        """Opens the channels unless they are open.

        Raises:
            CallCancelledError: They are closed.
            RuntimeError: They were opened in another process or event loop.
        """
        owner = self._get_owner()
        if self.closed:
            raise closed_error()
        if self._owner is None:
            self.all = tuple(PooledChannel(*opened) for opened in self._open_channels())
            self._avoided_until = {channel.server: 0.0 for channel in self.all}
            self._owner = owner
        elif self._owner != owner:
            raise RuntimeError(self._wrong_owner)

    def close(self) -> list[Any]:
        """Refuses further attempts.

        Returns:
            The channels, which the caller closes; empty if none is open.

        Raises:
            RuntimeError: As of ``open``.
        """
        if self.closed or self._owner is None:
            self.closed = True
            return []
        self.open()
        self.closed = True
        return [channel.grpc_channel for channel in self.all]

    def acquire(self, tried: Counter[PooledChannel], now: float) -> PooledChannel:
        """Returns the best channel for an attempt and adds the attempt to its load.

        Args:
            tried: How often the call has tried each channel.
            now: The time, of ``time.monotonic``.

        Raises:
            CallCancelledError: As of ``open``.
            RuntimeError: As of ``open``.
        """
        self.open()
        tried_servers: Counter[int] = Counter()
        for channel, count in tried.items():
            tried_servers[channel.server] += count
        with self._lock:
            number = min(
                range(len(self.all)),
                key=lambda number: (
                    self._avoided_until[self.all[number].server] > now,
                    tried_servers[self.all[number].server],
                    tried[self.all[number]],
                    self.all[number].load,
                    (number - self._next) % len(self.all),
                ),
            )
            self._next = number + 1
            channel = self.all[number]
            channel.load += 1
            return channel

    def release(self, channel: PooledChannel) -> None:
        """Subtracts an attempt that has ended from the channel's load."""
        with self._lock:
            channel.load -= 1

    def failed(self, channel: PooledChannel, error: GradCamError, now: float) -> None:
        """Avoids the channel's server for a while if a later attempt may succeed."""
        avoid_s = error.retry_after_s or 0.0
        if isinstance(error, UnavailableError):
            avoid_s = max(avoid_s, RECONNECT_S)
        elif not isinstance(error, OverloadedError):
            return
        with self._lock:
            self._avoided_until[channel.server] = max(
                self._avoided_until[channel.server], now + avoid_s
            )

    def available_in_s(self, now: float) -> float:
        """Returns the seconds until some server is not avoided."""
        with self._lock:
            return max(0.0, min(self._avoided_until.values(), default=0.0) - now)


class Route:
    """The channels and the metadata of the attempts of one call or stream.

    It is made in the thread or task of the user's call, whose current trace it carries.

    Args:
        pool: The client's channels.
        token: The bearer token of each attempt.
        request_id: The name of the call in the server's log; None generates one.

    Raises:
        ValueError: A request id that cannot be sent.
    """

    def __init__(
        self, pool: ChannelPool, token: Token | None, request_id: str | None = None
    ) -> None:
        self._pool = pool
        self._token = token
        self._tried: Counter[PooledChannel] = Counter()
        self.request_id = make_request_id(request_id)
        self._trace = trace_metadata()

    def metadata(self) -> Metadata:
        """Returns the metadata of the next attempt.

        Raises:
            ValueError: A token that cannot be sent.
        """
        fixed = (("x-request-id", self.request_id), *self._trace)
        if self._token is None:
            return fixed
        token = self._token if isinstance(self._token, str) else self._token()
        return (*fixed, ("authorization", bearer(token)))

    def begin(self) -> PooledChannel:
        """Returns the channel of the next attempt; the caller then calls ``end``."""
        channel = self._pool.acquire(self._tried, time.monotonic())
        self._tried[channel] += 1
        return channel

    def end(self, channel: PooledChannel) -> None:
        """Gives the channel of an attempt back."""
        self._pool.release(channel)

    def failed(self, channel: PooledChannel, error: GradCamError) -> GradCamError:
        """Notes the error of an attempt; returns it with the request id and a plain message."""
        error = explained(error, channel.target)
        error.request_id = self.request_id
        self._pool.failed(channel, error, time.monotonic())
        return error

    @property
    def available_in_s(self) -> float:
        """Seconds until some server is not avoided."""
        return self._pool.available_in_s(time.monotonic())

    @contextmanager
    def unless_closed(self) -> Iterator[None]:
        """Turns gRPC's error at the start of a call into ours if the client was just closed."""
        try:
            yield
        except (ValueError, grpc.aio.UsageError):
            if not self._pool.closed:
                raise
            raise closed_error() from None

    @contextmanager
    def attempt(self) -> Iterator[PooledChannel]:
        """Lends a channel for one attempt; raises its error as a ``GradCamError``."""
        channel = self.begin()
        try:
            with self.unless_closed():
                yield channel
        except grpc.RpcError as error:
            raise self.failed(channel, from_rpc_error(error)) from error
        except GradCamError as error:
            self.failed(channel, error)
            raise
        finally:
            self.end(channel)


class Call(Route):
    """A unary call: all attempts share one deadline.

    Args:
        pool: The client's channels.
        token: The bearer token of each attempt.
        request_id: The name of the call in the server's log; None generates one.
        policy: Decides when to try again.
        timeout_s: The deadline of all attempts, in seconds.
    """

    def __init__(
        self,
        pool: ChannelPool,
        token: Token | None,
        request_id: str | None,
        policy: RetryPolicy,
        timeout_s: float,
    ) -> None:
        super().__init__(pool, token, request_id)
        self._policy = policy
        self._deadline = time.monotonic() + timeout_s
        self._failures = 0

    def options(self) -> dict[str, Any]:
        """Returns the keyword arguments of a stub: the time that is left, and the metadata."""
        return {"timeout": self._deadline - time.monotonic(), "metadata": self.metadata()}

    def pause_s(self, error: GradCamError) -> float | None:
        """Returns the pause before another attempt in seconds, or None if the error is final."""
        self._failures += 1
        remaining_s = self._deadline - time.monotonic()
        return self._policy.pause_s(error, self._failures, remaining_s, self.available_in_s)
