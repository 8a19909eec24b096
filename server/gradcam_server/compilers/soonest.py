"""What is ready soonest: one ``tf.function``, without a trial of compilers or timing runs.

It takes well under a second of a CPU, less than one explanation that runs eagerly does.
"""

from collections.abc import Sequence

from gradcam_server.compiled import CompiledGraph
from gradcam_server.compilers import tensorflow
from gradcam_server.config import Compiler, Precision
from gradcam_server.graph import ExplanationGraph

# Not measured: in proportion to the batch, and so short that no deadline is given up for it.
_COST_S = 1e-9


def compile_soonest(
    graph: ExplanationGraph, batch_sizes: Sequence[int], precision: Precision
) -> CompiledGraph:
    """Traces a graph once, for batches of any size.

    Args:
        graph: The graph.
        batch_sizes: The ladder, ascending.
        precision: What the network is computed in.

    Raises:
        CompilerError: TensorFlow cannot compute it in this precision.
        DisconnectedLayerError: The scores don't depend on one of the layers.
    """
    size = batch_sizes[0] if len(batch_sizes) == 1 else None
    places = tensorflow.prepare(graph, precision)(size)
    cost_s = {size: size * _COST_S for size in batch_sizes}
    ladder = dict.fromkeys(batch_sizes, places)
    return CompiledGraph(graph.key, graph.model.input_size, Compiler.TENSORFLOW, ladder, cost_s)
