"""The graphs of an export, ready to be run: what the formats have in common."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.options import Compiler
from gradcam_server.graphs.executable import Divide, Executable, Executables
from gradcam_server.graphs.timing import noise_batch, quickest_s

_TIMED_RUNS = 2
# A longer run is timed once.
_LONG_S = 0.1


@dataclass(frozen=True)
class Executed:
    """A graph that runs.

    Attributes:
        executables: Executables by batch size, of each device.
        cost_s: Seconds that a batch of each size takes on the first device.
        depth: How many batches may be in flight on a device.
        divide: See ``CompiledGraph``.
        guessed: See ``CompiledGraph``.
    """

    executables: Sequence[Mapping[int, Executables]]
    cost_s: Mapping[int, float]
    depth: int = 1
    divide: Divide | None = None
    guessed: Collection[int] = ()


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
    executable: Executable,
    key: GraphKey,
    input_size: tuple[int, int],
    batch_size: int,
    max_runs: int = _TIMED_RUNS,
) -> float:
    """Returns the seconds of the quickest run on images of noise, after a run to warm up."""
    batch = noise_batch(key, input_size, 1, batch_size)
    return quickest_s(executable, batch, max_runs, _LONG_S)
