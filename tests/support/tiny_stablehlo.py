"""An export for XLA of a few kilobytes with a graph made by JAX, without TensorFlow.

The logits are linear in the mean colour; the maps are the grey image times the score.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from gradcam_server.domain.graph_io import GraphKey, output_names
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.options import GraphFormat, Precision
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.exports.files import hash_file
from gradcam_server.exports.manifest import MANIFEST, WEIGHTS, ExportedGraph, Manifest
from gradcam_server.graphs.compilers.pjrt_modules import from_text

SIZE, CLASSES, TARGETS = 8, 6, 5
LAYER = "conv"
WEIGHT = np.linspace(-1, 1, 3 * CLASSES, dtype=np.float32).reshape(3, CLASSES)


def write_tiny_stablehlo(folder: Path, batch_sizes: tuple[int, ...] = (1, 4)) -> None:
    """Writes the export into a new folder, and modules that predict alone beside its graph."""
    folder.mkdir(parents=True)
    save_file({"weight": WEIGHT}, folder / WEIGHTS)
    modules = {size: f"graph_0_{size}.mlirbc" for size in batch_sizes}
    for size, name in modules.items():
        (folder / name).write_bytes(_module(_explain, size))
    files = sorted(folder.iterdir())
    key = GraphKey("tiny", (LAYER,), Method.GRAD_CAM, ScoreType.LOGIT, TARGETS)
    manifest = Manifest(
        name="tiny",
        weights="made by hand",
        random_weights=False,
        input_size=(SIZE, SIZE),
        preprocessing=Preprocessing.NONE,
        layers=(LayerInfo(LAYER, "Conv2D", (None, SIZE, SIZE, 1), True),),
        default_layer=LAYER,
        labels=ClassLabels([ClassLabel(f"class {index}") for index in range(CLASSES)]),
        precision=Precision.FLOAT32,
        max_targets=TARGETS,
        graphs=(ExportedGraph(key, "", output_names(1), {}, modules, ("weight",)),),
        agreement=None,
        versions={},
        created="2026-11-26T12:00:00+00:00",
        sha256={file.name: hash_file(file) for file in files},
        sizes={file.name: file.stat().st_size for file in files},
        graph_format=GraphFormat.STABLEHLO,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    (folder / "predict_1.mlirbc").write_bytes(_module(_predict, 1))
    (folder / "predict.json").write_text(json.dumps({"weights": ["weight"]}), "utf-8")


def _predict(images: Any, _classes: Any, _against: Any, weight: Any) -> Any:
    logits = images.astype(jnp.float32).mean((1, 2)) @ weight
    return logits, jax.nn.softmax(logits)


def _explain(images: Any, classes: Any, against: Any, weight: Any) -> Any:
    logits, probabilities = _predict(images, classes, against, weight)
    # Without sorting or gathering, whose forms in JAX are younger than the oldest StableHLO.
    ranks = (logits[:, None] > logits[:, :, None]).sum(2)
    indices = jnp.arange(CLASSES, dtype=jnp.int32)
    is_chosen = (ranks[:, None] == -1 - classes[:, :, None]) | (indices == classes[:, :, None])
    chosen = jnp.where(is_chosen, indices, 0).sum(2).astype(jnp.int32)
    scores = jnp.where(is_chosen, logits[:, None], 0).sum(2)
    grey = images.astype(jnp.float32).mean(3)
    return logits, probabilities, chosen, scores, scores[:, :, None, None] * grey[:, None]


def _module(function: Any, batch_size: int) -> bytes:
    targets = jax.ShapeDtypeStruct((batch_size, TARGETS), jnp.int32)
    images = jax.ShapeDtypeStruct((batch_size, SIZE, SIZE, 3), jnp.uint8)
    weight = jax.ShapeDtypeStruct(WEIGHT.shape, jnp.float32)
    lowered = jax.jit(function, keep_unused=True).lower(images, targets, targets, weight)
    return from_text(lowered.as_text())
