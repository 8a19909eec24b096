"""Subjects for tests of the benchmarks: other processes import this module."""

import asyncio
import itertools
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradcam_server.bench.graph import Answer, Run
from gradcam_server.bench.load import ServerStats


@dataclass(frozen=True)
class MadeUp:
    """A server that answers one request at a time in ``service_s``; every ``fails``th fails.

    If it is ``gone``, it refuses connections.
    """

    service_s: float
    fails: int = 0
    gone: bool = False

    def __call__(self) -> "MadeUpClient":
        return MadeUpClient(self)


class MadeUpClient:
    def __init__(self, settings: MadeUp) -> None:
        self._settings, self._numbers = settings, itertools.count()

    async def open(self) -> None:
        if self._settings.gone:
            raise ConnectionError("as asked")
        self._one = asyncio.Lock()

    async def explain(self) -> ServerStats:
        async with self._one:
            await asyncio.sleep(self._settings.service_s)
        if self._settings.fails and next(self._numbers) % self._settings.fails == 1:
            raise ValueError("as asked")
        return ServerStats({"compute_us": 7}, 2, 4)

    async def close(self) -> None:
        pass


class Counter:
    def __init__(self, start: int) -> None:
        self.count = start

    def add(self, number: int) -> tuple[int, int]:
        self.count += number
        return self.count, os.getpid()

    def variable(self, name: str) -> str:
        return os.environ[name]

    def fail(self) -> None:
        raise ValueError("as asked")

    def die(self) -> None:
        os._exit(3)


class Ways:
    """A subject of the graph suite; ``error`` is added to its maps."""

    def __init__(self, error: float, fails: str = "") -> None:
        self._error, self._fails = error, fails

    def build(self, batch_size: int) -> Run:
        if self._fails:
            raise ValueError(self._fails)

        def run(images: NDArray[np.uint8]) -> Answer:
            grey = images.mean(axis=3).astype(np.float32)
            logits = grey[:, :3, 0]
            maps = grey[:, :4, :4]
            return Answer(logits, maps + np.float32(self._error * maps.max()))

        return run
