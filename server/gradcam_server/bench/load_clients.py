"""Load clients of a gradcam server: unary calls, or one stream.

Requests are serialised once and sent as bytes, so that the generator uses little CPU time.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import Client
from gradcam_server.bench.load import LoadClient, ServerStats

_SERVICE = "/gradcam.v1.ExplanationService"
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Without it, channels of one process to one server share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)
_STAGES = ("decode_us", "queue_us", "compute_us", "render_us")


class WrongAnswerError(Exception):
    """The server's answer is not a complete explanation."""


class Connection(Protocol):
    """Connects to a server, with TLS and token. Pickled into the generator's process."""

    def client(self, server: str) -> Client:
        """Makes a client of the server at HOST:PORT."""
        ...

    def aio_channel(
        self, address: str, options: Sequence[tuple[str, Any]] = ()
    ) -> grpc.aio.Channel:
        """Makes a channel to the server at HOST:PORT for the running event loop."""
        ...

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """The metadata of each call: the token, if there is one."""
        ...


@dataclass(frozen=True)
class Unary:
    """Makes clients that call ``ExplainImage``.

    Attributes:
        address: HOST:PORT.
        request: A serialised ``ExplainImageRequest``.
        connection: TLS and token.
        timeout_s: The deadline of each request.
    """

    address: str
    request: bytes
    connection: Connection
    timeout_s: float = 30.0

    def __call__(self) -> LoadClient:
        """Makes a client."""
        return _UnaryClient(self)


@dataclass(frozen=True)
class Stream(Unary):
    """Makes clients with one ``StreamExplainImages`` call, whose answers come in any order."""

    def __call__(self) -> LoadClient:
        """Makes a client."""
        return _StreamClient(self)


class _UnaryClient:
    def __init__(self, settings: Unary) -> None:
        self._settings = settings

    async def open(self) -> None:
        self._channel = self._settings.connection.aio_channel(self._settings.address, _OPTIONS)
        self._call: Any = self._channel.unary_unary(f"{_SERVICE}/ExplainImage")
        self._metadata = self._settings.connection.metadata

    async def explain(self) -> ServerStats:
        answer = await self._call(
            self._settings.request, timeout=self._settings.timeout_s, metadata=self._metadata
        )
        return server_stats(pb.ExplainImageResponse.FromString(answer))

    async def close(self) -> None:
        await self._channel.close()


class _StreamClient:
    def __init__(self, settings: Stream) -> None:
        self._settings = settings
        self._request = pb.ExplainImageRequest.FromString(settings.request)
        self._waiting: dict[str, asyncio.Future[ServerStats]] = {}
        self._count = 0

    async def open(self) -> None:
        self._channel = self._settings.connection.aio_channel(self._settings.address, _OPTIONS)
        method: Any = self._channel.stream_stream(f"{_SERVICE}/StreamExplainImages")
        self._stream = method(metadata=self._settings.connection.metadata)
        self._writing = asyncio.Lock()  # gRPC allows one write at a time
        self._reader = asyncio.create_task(self._read())

    async def explain(self) -> ServerStats:
        self._count += 1
        key = str(self._count)
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        message = pb.StreamExplainImagesRequest(correlation_id=key, request=self._request)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                async with self._writing:
                    await self._stream.write(message.SerializeToString())
                return await answer
        finally:
            self._waiting.pop(key, None)

    async def close(self) -> None:
        self._stream.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def _read(self) -> None:
        try:
            while (message := await self._stream.read()) is not grpc.aio.EOF:
                answer = pb.StreamExplainImagesResponse.FromString(message)
                waiting = self._waiting.get(answer.correlation_id)
                if waiting is None or waiting.done():
                    continue
                if answer.HasField("error"):
                    waiting.set_exception(WrongAnswerError(answer.error.message))
                else:
                    waiting.set_result(server_stats(answer.response))
        except grpc.RpcError as error:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(error)


def server_stats(answer: pb.ExplainImageResponse) -> ServerStats:
    """Returns the statistics in an answer.

    Raises:
        WrongAnswerError: There is no prediction or no heat map in it.
    """
    if not answer.predictions or not all(
        explanation.heatmaps for explanation in answer.explanations
    ):
        raise WrongAnswerError("an answer without a prediction or a heat map")
    stats = answer.stats
    stages = {name: getattr(stats, name) for name in _STAGES}
    return ServerStats(stages, stats.batch_size, stats.padded_batch_size)
