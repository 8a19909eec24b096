"""An engine for whom only images in a second count: no batch larger than pays."""

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.engine.engine import Engine, FirstUse
from gradcam_server.graphs.executable import CompiledGraph

# A larger batch must serve that many times the images in a second to be worth its memory.
_WORTH = 1.02


class ThroughputEngine(Engine):
    """Compiles all batch sizes, and uses those up to the one that serves most images."""

    def __init__(self, config: ServeConfig) -> None:
        super().__init__(config, FirstUse.FASTEST)

    def _compile(self, key: GraphKey) -> CompiledGraph:
        graph = super()._compile(key)
        return graph.up_to(best_size(graph))


def best_size(graph: CompiledGraph) -> int:
    """Returns the batch size that serves most images in a second, by the times as measured."""
    best, best_rate = 0, 0.0
    for size, cost_s in sorted(graph.cost_s.items()):
        if size / cost_s > best_rate * _WORTH:
            best, best_rate = size, size / cost_s
    return best
