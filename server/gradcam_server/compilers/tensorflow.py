"""TensorFlow's own executor: one ``tf.function`` for each batch size, oneDNN on CPUs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from gradcam_server.compiled import Array, Places
from gradcam_server.config import Precision
from gradcam_server.graph import ExplanationGraph


def prepare(
    graph: ExplanationGraph, precision: Precision, *, jit_compile: bool = False
) -> Callable[[int | None], Places]:
    """Prepares a graph. The weights stay the network's variables, in memory once.

    Args:
        graph: The graph.
        precision: Of the network; the maps are computed in float32.
        jit_compile: Whether XLA compiles it.

    Returns:
        Makes what runs a batch size; None is any size.
    """

    def places(batch_size: int | None) -> Places:
        function: Any = tf.function(
            partial(graph.explain, precision=precision),
            input_signature=graph.signature(batch_size),
            jit_compile=jit_compile,
            autograph=False,
        )
        device = graph.model.device
        with tf.device(device):
            concrete = function.get_concrete_function()  # which cannot trace again

        def run(*arrays: Array) -> Sequence[Array]:
            with tf.device(device):
                outputs = concrete(*map(tf.constant, arrays))
            return [tensor.numpy() for tensor in outputs]

        return (run,)

    return places
