"""Refuses models that run in training mode.

A model that was traced with ``training=True``, or has a layer that ignores ``training``, draws
random numbers (dropout) or uses statistics of its batch (batch normalisation): its answer to an
image changes each time, or with the other images of the batch. So one image is computed alone,
again, and in a batch with other images, and the logits are compared.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import (
    _run_inline_graph_optimization as inline_calls,
)

from gradcam_server.domain.graph_io import GraphItem
from gradcam_server.domain.options import Precision
from gradcam_server.graphs.executable import Array, CompiledGraph
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.network import Network

logger = logging.getLogger(__name__)

# Maximal differences, as shares of the logits' root mean square; the second of each pair is for
# reduced precisions.
# The same executable computes the same image in the same order: only atomic additions on GPUs may
# round otherwise.
_MAX_AGAIN, _MAX_AGAIN_REDUCED = 1e-3, 2e-2
# Other batch sizes have other kernels: these sum in another order, and on GPUs they may round
# products to 10 bits (TF32), 1e-3 for each layer; bfloat16 to 7 bits, which deep networks amplify.
_MAX_IN_BATCH, _MAX_IN_BATCH_REDUCED = 2e-2, 0.25
# Logits this close to zero change no probability visibly.
_MIN_LOGIT = 0.1

_RANDOM = ("Random", "StatelessRandom", "StatelessTruncated", "TruncatedNormal", "Stateful")
_NOT_RANDOM = ("StatelessRandomGet", "StatefulPartitionedCall")
_REDUCTIONS = {"Mean", "Sum", "Max", "Min", "Prod"}
_CALLS = {"StatefulPartitionedCall", "PartitionedCall"}
_MAX_NAMES = 3


def find_training_mode(
    model: LoadedModel, graph: CompiledGraph, precision: Precision = Precision.FLOAT32
) -> str | None:
    """Computes one image alone, again, and in a batch with other images.

    Args:
        model: The model, whose layers the reason names.
        graph: A graph of the model. If 1 is its only batch size there is no batch to compare with:
            operations that look like training are logged, not refused.
        precision: The precision of the graph's network.

    Returns:
        Why the model must be refused, and the remedy; None if its answers are equal.
    """
    exact = precision is Precision.FLOAT32
    image, white, noise = _images(model.input_size)
    smallest, largest = graph.batch_sizes[0], graph.max_batch_size
    alone = _logits(graph, [image], smallest)
    again = _difference(_logits(graph, [image], smallest), alone)
    if again > (_MAX_AGAIN if exact else _MAX_AGAIN_REDUCED):
        return _refusal(model, "computed again", again)
    if largest > 1:
        others = [white, image, noise, white][:largest]
        in_batch = _difference(_logits(graph, others, largest, row=1), alone)
        if in_batch > (_MAX_IN_BATCH if exact else _MAX_IN_BATCH_REDUCED):
            return _refusal(model, "computed in a batch with other images", in_batch)
    elif names := find_operations(model.network):
        logger.warning(
            "%s may run in training mode at %s: in a batch with other images, which a batch size "
            "of 1 rules out, an image may get another answer. Export the model with training=False",
            *(model.name, _listed(names)),
        )
    return None


def find_operations(network: Network) -> list[str]:
    """Returns the operations of a network that work as in training: "layer (type of operation)".

    The logits depend on them, and they draw random numbers or reduce over the images of a batch.
    """
    images = tf.TensorSpec((None, *network.input_size, 3), tf.float32)
    function = tf.function(lambda inputs: network.compute(inputs, [])[1], autograph=False)
    traced = function.get_concrete_function(images)
    graph = inline_calls(traced, lower_control_flow=False, aggressive_inlining=True)
    nodes = {node.name: node for node in graph.node}
    needed = _before(nodes, traced.outputs[0].op.name)
    layers = {re.split("/|#", layer.name)[-1]: layer.name for layer in network.layers}
    found = (
        f"{_layer(node.name, layers)} ({node.op})"
        for node in graph.node
        if node.name in needed and _is_of_training(node, nodes)
    )
    return list(dict.fromkeys(found))


def _images(input_size: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    """Returns noise, a white image, and other noise: uint8, (H, W, 3)."""
    random = np.random.default_rng(0)
    shape = (*input_size, 3)
    image, noise = (random.integers(0, 256, shape, np.uint8) for _ in range(2))
    return image, np.full(shape, 255, np.uint8), noise


def _logits(graph: CompiledGraph, images: Sequence[Array], size: int, row: int = 0) -> Array:
    return graph.run([GraphItem(image) for image in images], size)[row].logits


def _difference(logits: Array, expected: Array) -> float:
    """Returns the root mean square of a difference, as a share of that of ``expected``."""
    x, y = (np.nan_to_num(np.asarray(values, np.float64)) for values in (logits, expected))
    size = max(float(np.sqrt(np.mean(y**2))), _MIN_LOGIT)
    return float(np.sqrt(np.mean((x - y) ** 2))) / size


def _refusal(model: LoadedModel, when: str, difference: float) -> str:
    names = find_operations(model.network)
    where = f", most likely at {_listed(names)}" if names else ""
    return (
        f"{model.name} runs in training mode{where}: the logits of an image change by "
        f"{difference:.1%} when it is {when}. Export the model with training=False; a layer of "
        "your own must draw no random numbers and use no statistics of its batch when its call "
        "gets training=False"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _before(nodes: dict[str, Any], name: str) -> set[str]:
    """Returns the names of the nodes on which a node depends, its own included."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        if (current := waiting.pop()) not in found and current in nodes:
            found.add(current)
            waiting.extend(_inputs(nodes[current]))
    return found


def _inputs(node: Any) -> Iterator[str]:
    return (name.partition(":")[0] for name in node.input if not name.startswith("^"))


def _is_of_training(node: Any, nodes: dict[str, Any]) -> bool:
    if node.op.startswith("FusedBatchNorm"):
        return bool(node.attr["is_training"].b)
    if node.op in _REDUCTIONS:
        _, axes = _inputs(node)
        return axes in nodes and nodes[axes].op == "Const" and 0 in _values(nodes[axes])
    return node.op.startswith(_RANDOM) and not node.op.startswith(_NOT_RANDOM)


def _values(constant: Any) -> list[int]:
    return [int(value) for value in np.ravel(tf.make_ndarray(constant.attr["value"].tensor))]


def _layer(name: str, layers: Mapping[str, str]) -> str:
    """Returns the layer of an operation, if its scope names a layer, else its path."""
    parts = [part for part in name.split("/") if part not in _CALLS]
    # TensorFlow numbers repeated scopes.
    scopes = (parts[0], re.sub(r"_\d+$", "", parts[0]))
    return next((layers[scope] for scope in scopes if scope in layers), "/".join(parts))
