"""An export for XLA of a few kilobytes, made of a function of JAX, without TensorFlow.

The network is a convolution of one pixel, a ReLU, the mean over positions and a dense layer; the
maps are those of Grad-CAM of the logit at the ReLU.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from gradcam_server.domain.graph_io import GraphKey, output_names
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.options import GraphFormat, Precision
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.exports.files import hash_file
from gradcam_server.exports.manifest import (
    MANIFEST,
    WEIGHTS,
    ExportedGraph,
    Manifest,
    module_file,
)
from gradcam_server.graphs.compilers.pjrt_modules import from_text

SIZE, CHANNELS, CLASSES, TARGETS = 8, 4, 6, 5
SHAPES: Mapping[str, tuple[int, ...]] = {
    "conv/kernel": (1, 1, 3, CHANNELS),
    "conv/bias": (CHANNELS,),
    "logits/kernel": (CHANNELS, CLASSES),
}


def write_stablehlo(
    folder: Path,
    sizes: Sequence[int] = (1, 2),
    precision: Precision = Precision.FLOAT32,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> None:
    """Writes the export into a new folder; its weights are zeros.

    Args:
        folder: The folder.
        sizes: The batch sizes.
        precision: The precision of the weights.
        shapes: The shapes of weights by name; the function ignores those that follow its own.
    """
    folder.mkdir(parents=True)
    dtype = ml_dtypes.bfloat16 if precision is Precision.BFLOAT16 else np.float32
    weights = {f"{name}:{precision}": np.zeros(shape, dtype) for name, shape in shapes.items()}
    for size in sizes:
        (folder / module_file(0, size)).write_bytes(to_module(_explain, size, weights))
    (folder / WEIGHTS).write_bytes(save(weights))
    files = sorted(folder.iterdir())
    manifest = Manifest(
        name="tiny",
        weights="made by hand",
        random_weights=False,
        input_size=(SIZE, SIZE),
        preprocessing=Preprocessing.NONE,
        layers=(LayerInfo("relu", "ReLU", (None, SIZE, SIZE, CHANNELS), True),),
        default_layer="relu",
        labels=ClassLabels([ClassLabel(f"class {index}") for index in range(CLASSES)]),
        precision=precision,
        max_targets=TARGETS,
        graphs=(
            ExportedGraph(
                GraphKey("tiny", ("relu",), Method.GRAD_CAM, ScoreType.LOGIT, TARGETS),
                *("", output_names(1), {}),
                {size: module_file(0, size) for size in sizes},
                tuple(weights),
            ),
        ),
        agreement=None,
        versions={},
        created="2026-11-26T12:00:00+00:00",
        sha256={file.name: hash_file(file) for file in files},
        sizes={file.name: file.stat().st_size for file in files},
        graph_format=GraphFormat.STABLEHLO,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def to_module(
    function: Callable[..., Any], batch_size: int, weights: Mapping[str, NDArray[Any]]
) -> bytes:
    """Returns the module of a function of images, classes, contrasted classes and weights."""
    targets = jax.ShapeDtypeStruct((batch_size, TARGETS), np.int32)
    images = jax.ShapeDtypeStruct((batch_size, SIZE, SIZE, 3), np.uint8)
    kinds = [jax.ShapeDtypeStruct(weight.shape, weight.dtype) for weight in weights.values()]
    lowered = jax.jit(function, keep_unused=True).lower(images, targets, targets, *kinds)
    return from_text(lowered.as_text())


def _explain(
    images: Any, classes: Any, _against: Any, kernel: Any, bias: Any, head: Any, *_others: Any
) -> tuple[Any, ...]:
    activation = jnp.maximum(images.astype(kernel.dtype) @ kernel[0, 0] + bias, 0)
    activation = activation.astype(jnp.float32)
    head = head.astype(jnp.float32)
    logits = activation.mean((1, 2)) @ head
    chosen = jax.nn.one_hot(classes, CLASSES)  # an older StableHLO has no batches in its gather
    slopes = chosen @ head.T / SIZE**2
    maps = jnp.einsum("bhwk,btk->bthw", activation, slopes)
    scores = (logits[:, None] * chosen).sum(-1)
    return logits, jax.nn.softmax(logits), classes, scores, maps
