"""The bare graph: the server's computation without a server around it."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradcam_server.bench.payload import photograph
from gradcam_server.bench.worker import cpu_s
from gradcam_server.domain.graph_io import GraphItem, GraphTarget, by_rank

if TYPE_CHECKING:
    from gradcam_server.config.settings import ServeConfig

_CALIBRATION_TURNS = 3
_CALIBRATION_S = 0.7  # of a turn


@dataclass(frozen=True)
class Calibration:
    """The cost of the bare graph's batches.

    Attributes:
        cpu_s: CPU seconds of one batch in all threads, by compiled batch size.
        seconds: Wall-clock seconds of one batch, by compiled batch size.
        fastest: The batch size of the highest throughput.
        compiler: The compiler that runs the graph.
        input_size: (height, width) of the model's input.
    """

    cpu_s: dict[int, float]
    seconds: dict[int, float]
    fastest: int
    compiler: str
    input_size: tuple[int, int]


class BareGraph:
    """Runs the default graph of a server's first model; made in a ``Worker``.

    Args:
        config: The server's settings.

    Raises:
        StartupError: The model or its weights cannot be had.
    """

    def __init__(self, config: ServeConfig) -> None:
        from gradcam_server.engine.engine import Engine

        engine = Engine(config)
        engine.warm_up()
        catalog = engine.catalog
        self._model = catalog.models[0]
        key = next(key for key in catalog.warm if key.model == self._model.id)
        self._graph = asyncio.run(engine.graph(key))
        self._items = [
            GraphItem(photograph(seed, self._model.input_size), [GraphTarget(by_rank(0))])
            for seed in range(max(config.batch_sizes))
        ]

    def calibrate(self) -> Calibration:
        """Measures every compiled batch size, in turns; the quickest turn of each counts."""
        used: dict[int, float] = {}
        seconds: dict[int, float] = {}
        for _ in range(_CALIBRATION_TURNS):
            for size in self._graph.batch_sizes:
                _, batches, used_s, wall_s = self._run(size, _CALIBRATION_S)
                if wall_s / batches < seconds.get(size, math.inf):
                    used[size], seconds[size] = used_s / batches, wall_s / batches
        fastest = min(seconds, key=lambda size: seconds[size] / size)
        compiler = str(self._model.compiler)
        return Calibration(used, seconds, fastest, compiler, self._model.input_size)

    def images_per_s(self, size: int, seconds: float) -> float:
        """Runs full batches one after the other for ``seconds``; returns the throughput."""
        images, _, _, wall_s = self._run(size, seconds)
        return images / wall_s

    def _run(self, size: int, seconds: float) -> tuple[int, int, float, float]:
        items = self._items[:size]
        self._graph.run(items, size)
        batches = 0
        started, used = time.perf_counter(), cpu_s()
        while (passed := time.perf_counter() - started) < seconds or not batches:
            self._graph.run(items, size)
            batches += 1
        passed = time.perf_counter() - started
        return batches * size, batches, cpu_s() - used, passed
