"""The graph that is ready soonest: one ``tf.function``, without trials or timing runs.

Tracing the function takes well under a second of a CPU, less than one eager explanation. The
function computes activations and gradients; the method makes the maps of them eagerly, so that
further methods at the same layers cost next to nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

import tensorflow as tf

from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.options import Precision
from gradcam_server.domain.registry import differentiated_as
from gradcam_server.graphs.compilers import tensorflow
from gradcam_server.graphs.compilers.base import REFERENCE
from gradcam_server.graphs.executable import Array, CompiledGraph
from gradcam_server.graphs.explanation import ExplanationGraph

# Not measured: in proportion to the batch, and so short that no deadline counts as missed.
_COST_S = 1e-9


class SoonestCompiler:
    """Makes graphs of one model. Methods that differ in their maps alone share a traced function.

    A function is kept as long as a graph uses it.

    Args:
        precision: The precision of the network.
    """

    def __init__(self, precision: Precision) -> None:
        self._precision = precision
        self._traced: WeakValueDictionary[
            tuple[GraphKey, int | None], Callable[..., Sequence[tf.Tensor]]
        ] = WeakValueDictionary()

    def __call__(self, graph: ExplanationGraph, batch_sizes: Sequence[int]) -> CompiledGraph:
        """Makes a graph.

        Args:
            graph: The graph.
            batch_sizes: The batch sizes, ascending.

        Raises:
            CompilerError: TensorFlow cannot compute the graph in this precision.
            DisconnectedLayerError: The scores don't depend on one of the layers.
        """
        key, device = graph.key, graph.model.device
        size = batch_sizes[0] if len(batch_sizes) == 1 else None
        shared = replace(key, method=differentiated_as(key.method)), size
        function = self._traced.get(shared)
        if function is None:
            whole = graph.explain if key.channel_count else graph.differentiate
            function = tensorflow.trace(graph, partial(whole, precision=self._precision), size)
            self._traced[shared] = function

        def run(*arrays: Array) -> Sequence[Array]:
            tensors = function(*arrays)
            if not key.channel_count:
                with tf.device(device):
                    tensors = graph.maps(tensors)
            return [tensor.numpy() for tensor in tensors]

        executables = dict.fromkeys(batch_sizes, (run,))
        cost_s = {size: size * _COST_S for size in batch_sizes}
        return CompiledGraph(key, graph.model.input_size, REFERENCE, executables, cost_s)
