"""The answers of /metrics, /healthz and /readyz, free of the HTTP library.

/metrics    the metrics
/healthz    200 "ok" while the process can heal itself, else 503 and why it must be restarted
/readyz     200 "ready", else 503 and the reason

The first front end makes the answers; the others pass probes on to it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias

PATHS = ("/metrics", "/healthz", "/readyz")


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """An answer: a status of HTTP, the content and its type."""

    status: int
    content: bytes
    content_type: str = "text/plain; charset=utf-8"


Probe: TypeAlias = Callable[[str, str], Awaitable[ProbeAnswer]]
"""Answers a path of ``PATHS``; takes the header Accept, too."""

Exposition: TypeAlias = Callable[[str], tuple[bytes, str]]
"""Takes the header Accept; returns the metrics and their content type."""


class Probes:
    """Answers in the process that knows: the first front end.

    Args:
        exposition: Writes the metrics, as ``Metrics.exposition`` does. Called on another thread.
        why_not_alive: Returns why the process must be restarted; None if it need not be.
        why_not_ready: Returns why the server is not ready; None if it is ready.
    """

    def __init__(
        self,
        exposition: Exposition,
        why_not_alive: Callable[[], str | None],
        why_not_ready: Callable[[], str | None],
    ) -> None:
        self._exposition = exposition
        self._why_not_alive, self._why_not_ready = why_not_alive, why_not_ready
        self._writing = asyncio.Lock()

    async def __call__(self, path: str, accept: str) -> ProbeAnswer:
        """Answers a path of ``PATHS``."""
        match path:
            case "/metrics":
                async with self._writing:  # one thread at most, however many ask
                    found = await asyncio.to_thread(self._exposition, accept)
                return ProbeAnswer(HTTPStatus.OK, *found)
            case "/healthz":
                return _probed("ok", self._why_not_alive())
            case _:
                return _probed("ready", self._why_not_ready())


def _probed(good: str, reason: str | None) -> ProbeAnswer:
    """Answers a probe: 200 without a reason, 503 with the reason."""
    if reason is None:
        return ProbeAnswer(HTTPStatus.OK, f"{good}\n".encode())
    return ProbeAnswer(HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode())
