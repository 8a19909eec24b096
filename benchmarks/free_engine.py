"""The engine's process with graphs that cost nothing, for ``engine_rate``.

The rest is the engine's own: messages, shared memory, batcher, and filling the array of a batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradcam_server.domain.catalog import Catalog
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.options import Compiler
from gradcam_server.engine.ipc import main
from gradcam_server.graphs.executable import Array, CompiledGraph
from support.instant import CLASSES, INPUT_SIZE, InstantBackend

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class FreeGraph(CompiledGraph):
    """A graph whose batches cost what they are said to cost."""

    def ran(self, padded_size: int, device: int, seconds: float) -> None:
        """Learns nothing."""


class FreeEngine:
    """The model of ``InstantBackend``, whose graphs return the same outputs again and again."""

    compilation_count = 0
    device_count = 1

    def __init__(self) -> None:
        self.catalog: Catalog = InstantBackend().catalog
        self._graphs: dict[GraphKey, CompiledGraph] = {}

    def ready(self, key: GraphKey) -> CompiledGraph:
        """Returns the graph."""
        graph = self._graphs.get(key)
        if graph is None:
            executables = {size: [_executable(size, key.max_targets)] for size in BATCH_SIZES}
            # A batch costs as much as ten images: large batches are better, as on a GPU.
            cost_s = {size: (size + 10) * 1e-5 for size in BATCH_SIZES}
            graph = FreeGraph(key, INPUT_SIZE, Compiler.XLA, executables, cost_s)
            self._graphs[key] = graph
        return graph

    async def add_streams(self, *_: object) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _executable(size: int, targets: int) -> Any:
    logits = np.random.default_rng(0).random((size, CLASSES), dtype=np.float32)
    classes = np.zeros((size, targets), np.int32)
    maps = np.random.default_rng(0).random((size, targets, 7, 7), dtype=np.float32)
    outputs = (logits, logits, classes, logits[:, :targets], maps)

    def run(_images: Array, _classes: Array, _against: Array) -> Sequence[Array]:
        return outputs

    return run


if __name__ == "__main__":
    setattr(main, "_warm_engine", lambda _: FreeEngine())  # noqa: B010 - for mypy it is a function
    main.main()
