"""Extents of the operations of a TensorFlow graph; see ``extents.py``."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradcam_server.domain.layers import Extent
from gradcam_server.models.extents import IMAGE, Step, find_extents

_CONVOLUTIONS = {"Conv2D", "DepthwiseConv2dNative"}
_POOLING = {"AvgPool", "MaxPool"}
_MIXING = {
    "BatchMatMul",
    "BatchMatMulV2",
    "BatchMatMulV3",
    "BatchToSpaceND",
    "Conv2DBackpropInput",
    "Conv3D",
    "Einsum",
    "MatMul",
    "MaxPoolV2",
    "SpaceToBatchND",
}
_MOVING = {
    "CropAndResize",
    "ExtractGlimpse",
    "GatherNd",
    "GatherV2",
    "ImageProjectiveTransformV2",
    "ImageProjectiveTransformV3",
    "MirrorPad",
    "Pad",
    "PadV2",
    "ResizeArea",
    "ResizeBicubic",
    "ResizeBilinear",
    "ResizeNearestNeighbor",
    "ScaleAndTranslate",
    "Slice",
    "StridedSlice",
}
_OF_SHAPES = {"Rank", "Shape", "ShapeN", "Size"}

Compute = Callable[[str, tf.Tensor, Sequence[str]], Sequence[tf.Tensor]]
"""Computes the first outputs of operations from values of one operation, all by name."""


def find_graph_extents(
    model: str,
    images: Collection[tf.Operation],
    operations: Mapping[tf.Operation, str],
    shape: tuple[int, int, int],
    dtype: str,
    compute: Compute,
) -> dict[str, Extent]:
    """Finds the part of the input that each operation's map covers; see ``find_extents``.

    Args:
        model: The model's name, for warnings.
        images: The operations whose output is the image itself.
        operations: The names of all other operations from the image to the logits, in the order
            of computation.
        shape: (height, width, channels) of the input.
        dtype: Type of the input.
        compute: Computes operations; ``IMAGE`` is the image's name.

    Returns:
        Extents by the name of the operation, without those of the whole input.
    """
    keys = dict.fromkeys(images, IMAGE)
    steps = []
    for operation, name in operations.items():
        # Operations on shapes do not depend on the image's values.
        given = [] if operation.type in _OF_SHAPES else [tensor.op for tensor in operation.inputs]
        inputs = tuple(dict.fromkeys(keys[source] for source in given if source in keys))
        if inputs and operation.outputs:
            keys[operation] = name
            steps.append(_step(operation, name, inputs))

    types = {IMAGE: dtype, **{step.key: step.dtype for step in steps}}

    def run(
        source: str, images: NDArray[np.float32], wanted: Sequence[Step]
    ) -> Mapping[str, NDArray[np.floating]]:
        names = [step.key for step in wanted if len(step.shape) == 4]
        values = compute(source, tf.cast(images, types[source]), names)
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    return find_extents(model, steps, shape, dtype, run)


def _step(operation: tf.Operation, name: str, inputs: tuple[str, ...]) -> Step:
    output = operation.outputs[0]
    return Step(
        key=name,
        inputs=inputs,
        shape=tuple(output.shape) if output.shape.rank is not None else (),
        dtype=output.dtype.name,
        window=_window(operation),
        moves=operation.type in _MOVING,
    )


def _window(operation: tf.Operation) -> tuple[int, int] | None:
    """Returns the (height, width) that an operation mixes; (1, 1) if unknown; None for none."""
    if operation.type in _CONVOLUTIONS:
        height, width = (int(size or 1) for size in operation.inputs[1].shape[:2])
        _, by_row, by_column, _ = operation.get_attr("dilations")
        return (height - 1) * by_row + 1, (width - 1) * by_column + 1
    if operation.type in _POOLING:
        _, height, width, _ = operation.get_attr("ksize")
        return height, width
    return (1, 1) if operation.type in _MIXING else None


def cut_out(
    graph: tf.compat.v1.GraphDef, names: Sequence[str], source: str
) -> tf.compat.v1.GraphDef:
    """Returns the part of a graph that computes operations from ``source``, which it leaves out."""
    nodes = {node.name: node for node in graph.node}
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().removeprefix("^").partition(":")[0]
        if name in nodes and name != source and name not in needed:
            needed.add(name)
            waiting.extend(nodes[name].input)
    part = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    part.node.extend(node for node in graph.node if node.name in needed)
    return part
