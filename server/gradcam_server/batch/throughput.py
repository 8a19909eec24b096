"""An engine tuned for throughput: it uses no batch size above the fastest per image."""

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.engine.engine import Engine, FirstUse
from gradcam_server.graphs.executable import CompiledGraph

# By how much a larger batch must raise the throughput to be worth its memory.
_MIN_SPEEDUP = 1.02


class ThroughputEngine(Engine):
    """Compiles all batch sizes, and uses those up to the one of highest throughput."""

    def __init__(self, config: ServeConfig) -> None:
        super().__init__(config, FirstUse.FASTEST)

    def _compile(self, key: GraphKey) -> CompiledGraph:
        graph = super()._compile(key)
        return graph.up_to(best_size(graph)).divided()


def best_size(graph: CompiledGraph) -> int:
    """Returns the batch size of the highest throughput, by the measured times."""
    best, best_rate = 0, 0.0
    for size, cost_s in sorted(graph.cost_s.items()):
        if size / cost_s > best_rate * _MIN_SPEEDUP:
            best, best_rate = size, size / cost_s
    return best
