"""The graphs of an export, ready to be run: what the formats have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np

from gradcam_server.domain.graph_io import NO_CLASS, GraphKey, by_rank
from gradcam_server.domain.options import Compiler
from gradcam_server.graphs.executable import Executable, Executables

_MAX_TIMED_RUNS = 2
# A longer run is timed once.
_LONG_S = 0.1


@dataclass(frozen=True)
class Executed:
    """A graph that runs.

    Attributes:
        executables: Executables by batch size, of each device.
        cost_s: Seconds that a batch of each size takes on the first device.
    """

    executables: Sequence[Mapping[int, Executables]]
    cost_s: Mapping[int, float]


class LoadedGraphs(Protocol):
    """The graphs of an export, which are read and checked."""

    @property
    def compiler(self) -> Compiler:
        """The compiler that runs them."""
        ...

    @property
    def device_count(self) -> int:
        """How many devices run them."""
        ...

    @property
    def precision(self) -> str:
        """The precision that the networks are computed in, in words."""
        ...

    def load(self, number: int, batch_sizes: Sequence[int]) -> Executed:
        """Compiles a graph.

        Args:
            number: Its place in the manifest.
            batch_sizes: The batch sizes, ascending.
        """
        ...


def time_batch(
    executable: Executable, key: GraphKey, input_size: tuple[int, int], batch_size: int
) -> float:
    """Returns the seconds of the quickest run on black images, after a run to warm up."""
    images = np.zeros((batch_size, *input_size, 3), key.pixel_type)
    targets = np.full((batch_size, key.max_targets), by_rank(0), np.int32)
    against = np.full_like(targets, NO_CLASS)
    executable(images, targets, against)
    seconds: list[float] = []
    while len(seconds) < _MAX_TIMED_RUNS and max(seconds, default=0.0) < _LONG_S:
        began = perf_counter()
        executable(images, targets, against)
        seconds.append(perf_counter() - began)
    return min(seconds)
