"""TensorFlow's executor (oneDNN on CPUs) and XLA: one ``tf.function`` for each batch size."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import tensorflow as tf

from gradcam_server.domain.options import Precision
from gradcam_server.graphs.compilers.base import Prepared
from gradcam_server.graphs.executable import Array, Executables
from gradcam_server.graphs.explanation import ExplanationGraph


def prepare(
    graph: ExplanationGraph, precision: Precision, *, jit_compile: bool = False
) -> Prepared:
    """Prepares a graph. The weights stay the network's variables, in memory once.

    Args:
        graph: The graph.
        precision: Of the network; the maps are computed in float32.
        jit_compile: Whether XLA compiles the function, at its first run.
    """
    explain = partial(graph.explain, precision=precision)

    def compile_size(batch_size: int) -> Executables:
        function = trace(graph, explain, batch_size, jit_compile=jit_compile)

        def run(*arrays: Array) -> Sequence[Array]:
            return [tensor.numpy() for tensor in function(*arrays)]

        return (run,)

    return compile_size


def trace(
    graph: ExplanationGraph,
    function: Callable[..., Sequence[tf.Tensor]],
    batch_size: int | None,
    *,
    jit_compile: bool = False,
) -> Callable[..., Sequence[tf.Tensor]]:
    """Traces a function of a graph.

    Args:
        graph: The graph.
        function: ``graph.explain`` or ``graph.differentiate``.
        batch_size: The batch size; None for any.
        jit_compile: Whether XLA compiles the function, at its first run.

    Returns:
        A function from arrays to tensors, on the model's device.
    """
    traced: Any = tf.function(
        function,
        input_signature=graph.signature(batch_size),
        jit_compile=jit_compile,
        autograph=False,
    )
    device = graph.model.device
    with tf.device(device):
        concrete = traced.get_concrete_function()  # cannot trace again

    def run(*arrays: Array) -> Sequence[tf.Tensor]:
        with tf.device(device):
            return cast("Sequence[tf.Tensor]", concrete(*map(tf.constant, arrays)))

    return run
