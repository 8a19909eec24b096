"""What the explanation costs over the prediction: the same compiled graph with and without it.

Alternatives are interleaved in one run, and each round gives one ratio, so that the
machine's moods cancel; the figures are the median ratio and its quartiles.

Usage: python benchmarks/explanation_cost.py [--model M] [--rounds N] [--output FILE]
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from rich.progress import track

from gradcam_server.compiled import CompilationCounter
from gradcam_server.compilers.choice import compile_graph
from gradcam_server.config import Compiler
from gradcam_server.graph import ExplanationGraph
from gradcam_server.graph_io import (
    GraphItem,
    GraphKey,
    GraphTarget,
    by_rank,
)
from gradcam_server.layers import default_layer
from gradcam_server.models import ModelSpec, load
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.preprocessing import preprocess
from gradcam_server.requests import Method, ScoreType

BATCH_SIZES = (1, 8)
TARGETS = (1, 5)


def prediction_alone(model: LoadedModel, batch_size: int) -> Any:
    """Compiles preprocessing, network and softmax, without gradient or map."""

    def predict(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        _, logits = model.network.compute(preprocess(images, model.preprocessing), ())
        return logits, tf.nn.softmax(logits)

    signature = (tf.TensorSpec((batch_size, *model.input_size, 3), tf.uint8),)
    function = tf.function(predict, input_signature=signature, jit_compile=True, autograph=False)
    concrete = function.get_concrete_function()
    return lambda images: [tensor.numpy() for tensor in concrete(tf.constant(images))]


def explanation(model: LoadedModel, batch_size: int, targets: int) -> Any:
    """Compiles the server's graph at the default layer."""
    layers = (default_layer(model.network.layers),)
    key = GraphKey(model.name, layers, Method.GRAD_CAM, ScoreType.LOGIT, targets)
    graph = compile_graph(
        ExplanationGraph(model, key, CompilationCounter()), (batch_size,), Compiler.XLA
    )
    classes = [GraphTarget(by_rank(rank)) for rank in range(targets)]
    return lambda images: graph.run([GraphItem(image, classes) for image in images], batch_size)


def measure(model: LoadedModel, batch_size: int, rounds: int) -> dict[str, Any]:
    """Times all alternatives, interleaved; checks first that they predict alike."""
    shape = (batch_size, *model.input_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    alternatives = {"prediction": prediction_alone(model, batch_size)}
    for targets in TARGETS:
        alternatives[f"explanation of {targets}"] = explanation(model, batch_size, targets)
    expected = alternatives["prediction"](images)[0]
    for name, run in list(alternatives.items())[1:]:
        logits = np.stack([output.logits for output in run(images)])
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3, err_msg=name)
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in track(range(rounds), description=f"batch size {batch_size}"):
        for name, run in alternatives.items():
            started = time.perf_counter()
            run(images)
            seconds[name].append(time.perf_counter() - started)
    base = np.array(seconds["prediction"])
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "alternatives": {
            name: {
                "ms_per_image_median": float(np.median(times) / batch_size * 1e3),
                "ratio_to_prediction_quartiles": np.percentile(
                    np.array(times) / base, [25, 50, 75]
                ).tolist(),
            }
            for name, times in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    model = load(ModelSpec(arguments.model, arguments.model, weights="random"))
    report = {
        "model": arguments.model,
        "compiler": "xla",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "results": [measure(model, size, arguments.rounds) for size in BATCH_SIZES],
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
