"""The HTTP port of a front end with an engine that answers at once, on a thread of its own."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.backend import Backend
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.tracing import NO_TRACER
from gradcam_server.transport.grpc_server import FrontEnd
from gradcam_server.transport.http.probe_answer import Probes
from gradcam_server.transport.http.protocol import Connection
from support.instant import InstantBackend

TIMEOUT_S = 30


@dataclass(frozen=True)
class Answer:
    """An answer over HTTP."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def problem(self) -> tuple[int, str, str]:
        """The status, gRPC's code and the field of a problem."""
        assert self.headers["content-type"] == "application/problem+json", self.body
        assert self.json["status"] == self.status
        return self.status, self.json["code"], self.json.get("field", "")


class HttpFrontEnd:
    """A front end whose HTTP port answers until ``close``.

    Args:
        backend: The engine; None is one that answers at once.
        ready: Whether it admits requests.
        **settings: Settings that are not the defaults.
    """

    def __init__(
        self, backend: Backend | None = None, *, ready: bool = True, **settings: Any
    ) -> None:
        self.config = ServeConfig(**settings)
        self.metrics = Metrics()
        self.why_not_ready: str | None = None
        self.fault: str | None = None
        self._backend, self._ready = backend or InstantBackend(), ready
        self._started = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._started.wait(TIMEOUT_S)
        if self._error is not None:
            self._thread.join()
            raise self._error

    async def _run(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.front_end = FrontEnd(self.config, self.metrics, NO_TRACER)
        explainer = Explainer(self.config, self._backend, self.metrics)
        if self._ready:
            self.front_end.publish(explainer)
        probes = Probes(
            lambda accept: self.metrics.exposition(accept),
            lambda: self.fault,
            lambda: self.why_not_ready,
        )
        try:
            self.port = await self.front_end.listen_http(self.config.http_port or 0, probes)
        except Exception as error:  # noqa: BLE001 - for the thread that waits
            self._error = error
        self._started.set()
        if self._error is None:
            await self._stop.wait()
        await self.front_end.stop()
        await explainer.retire()

    def close(self) -> None:
        """Closes the port, and waits for the end."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(TIMEOUT_S)

    def __enter__(self) -> "HttpFrontEnd":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Sends a request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            return read_answer(connection)
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """Sends GET."""
        return self.request("GET", path, None, _names(headers))

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """Sends POST; underscores of header names count as hyphens."""
        return self.request("POST", path, body, _names(headers))

    def connect(self, sent: bytes = b"") -> socket.socket:
        """Opens a connection, and sends bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)
        connection.sendall(sent)
        return connection

    @property
    def connections(self) -> list[Connection]:
        """The open connections of the port."""
        port = self.front_end._http
        assert port is not None
        return port._connections

    def counted(self, name: str, **labels: str) -> float:
        """Returns the sum of a metric's samples with these labels."""
        return sum(
            sample.value
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def read_answer(connection: http.client.HTTPConnection) -> Answer:
    """Reads the next answer of a connection."""
    found = connection.getresponse()
    headers = {name.lower(): value for name, value in found.getheaders()}
    return Answer(found.status, found.read(), headers)


def read_all(connection: socket.socket) -> bytes:
    """Reads until the server closes the connection."""
    received = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part


def _names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
