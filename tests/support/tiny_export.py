"""An export of a few hundred bytes with a graph made by hand, without TensorFlow.

The logits are linear in the mean colour; the maps are the grey image, halved in size, times the
score.
"""

from pathlib import Path

import numpy as np

from gradcam_server.domain.graph_io import INPUTS, GraphKey, output_names
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.options import Precision
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.exports.files import hash_file
from gradcam_server.exports.manifest import MANIFEST, ExportedGraph, Manifest
from gradcam_server.graphs.compilers.openvino_runtime import openvino

SIZE, CLASSES = 8, 6
LAYER = "conv"


def write_tiny_export(folder: Path, *max_targets: int) -> Manifest:
    """Writes the export into a new folder: a graph for each number of targets, by default 5."""
    folder.mkdir()
    names = output_names(1)
    graphs = {f"graph_{number}.xml": count for number, count in enumerate(max_targets or (5,))}
    for file, count in graphs.items():
        openvino.save_model(_graph(count, names), folder / file, compress_to_fp16=False)
    files = sorted(folder.iterdir())
    manifest = Manifest(
        name="tiny",
        weights="made by hand",
        random_weights=False,
        input_size=(SIZE, SIZE),
        preprocessing=Preprocessing.NONE,
        layers=(LayerInfo(LAYER, "Conv2D", (None, SIZE // 2, SIZE // 2, 1), True),),
        default_layer=LAYER,
        labels=ClassLabels([ClassLabel(f"class {index}") for index in range(CLASSES)]),
        precision=Precision.FLOAT32,
        max_targets=max(graphs.values()),
        graphs=tuple(
            ExportedGraph(
                GraphKey("tiny", (LAYER,), Method.GRAD_CAM, ScoreType.LOGIT, count),
                *(file, names, {1: 0.001, 4: 0.002}),
            )
            for file, count in graphs.items()
        ),
        agreement=None,
        versions={},
        created="2026-11-26T12:00:00+00:00",
        sha256={file.name: hash_file(file) for file in files},
        sizes={file.name: file.stat().st_size for file in files},
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _graph(max_targets: int, names: tuple[str, ...]) -> openvino.Model:
    ops = openvino.opset13
    images = ops.parameter([-1, SIZE, SIZE, 3], np.uint8)
    classes = ops.parameter([-1, max_targets], np.int32)
    against = ops.parameter([-1, max_targets], np.int32)
    pixels = ops.convert(images, "f32")
    weights = np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)
    logits = ops.matmul(
        ops.reduce_mean(pixels, np.array([1, 2])), ops.constant(weights), False, False
    )
    best = ops.topk(logits, np.int64(max_targets), 1, "max", "value")
    ranks = ops.maximum(ops.subtract(np.int32(-1), classes), np.int32(0))
    ranks = ops.minimum(ranks, np.int32(max_targets - 1))
    is_rank = ops.less(classes, np.int32(0))
    chosen = ops.select(is_rank, ops.gather_elements(best.output(1), ranks, 1), classes)
    scores = ops.gather_elements(logits, chosen, 1)
    grey = ops.reduce_mean(pixels, np.array([3]), keep_dims=True)
    halves = ops.avg_pool(
        ops.transpose(grey, np.array([0, 3, 1, 2])),
        *([2, 2], [0, 0], [0, 0], [2, 2], False),
    )
    maps = ops.multiply(halves, ops.unsqueeze(scores, np.array([2, 3])))
    # OpenVINO would remove an unused input.
    scores = ops.add(scores, ops.multiply(ops.convert(against, "f32"), np.float32(0)))
    outputs = (logits, ops.softmax(logits, 1), chosen, scores, maps)
    for name, node in zip(INPUTS, (images, classes, against), strict=True):
        node.output(0).set_names({name})
    results = []
    for name, node in zip(names, outputs, strict=True):
        node.output(0).set_names({name})
        results.append(ops.result(node))
    return openvino.Model(results, [images, classes, against], "tiny")
