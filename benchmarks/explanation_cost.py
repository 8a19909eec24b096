"""Measures the cost of the explanation: the same compiled graph with and without it.

The alternatives take turns, and each round gives one ratio, so that noise of the machine cancels;
the figures are the median ratio and its quartiles.

Usage: python benchmarks/explanation_cost.py [--model M] [--compiler C] [--rounds N] [--output FILE]
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rich.progress import track

from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput, GraphTarget, by_rank
from gradcam_server.domain.layers import default_layer
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.graphs.compilers.autotune import compile_graph
from gradcam_server.graphs.executable import CompilationCounter
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.loading import load

BATCH_SIZES = (1, 8)
TARGETS = (1, 5)


class PredictionGraph(ExplanationGraph):
    """Preprocessing, network and softmax, without gradient or map."""

    def explain(
        self,
        images: tf.Tensor,
        classes: tf.Tensor,
        against: tf.Tensor,
        precision: Precision = Precision.FLOAT32,
    ) -> tuple[tf.Tensor, ...]:
        """Returns the logits, the probabilities, and the given classes."""
        _, logits = self.run_network(images, (), precision)
        return logits, tf.nn.softmax(logits), classes + 0, tf.cast(against, tf.float32)


def compiled(
    model: LoadedModel, batch_size: int, compiler: Compiler, targets: int | None
) -> Callable[[NDArray[np.uint8]], list[GraphOutput]]:
    """Compiles the server's graph at the default layer; without targets, only the prediction."""
    layers = () if targets is None else (default_layer(model.network.layers),)
    make = PredictionGraph if targets is None else ExplanationGraph
    key = GraphKey(model.name, layers, Method.GRAD_CAM, ScoreType.LOGIT, targets or 1)
    graph = compile_graph(make(model, key, CompilationCounter()), (batch_size,), compiler)
    if graph.compiler is not compiler:
        raise SystemExit(f"{compiler} cannot compile {key}")
    classes = [GraphTarget(by_rank(rank)) for rank in range(targets or 0)]
    return lambda images: graph.run([GraphItem(image, classes) for image in images], batch_size)


def measure(model: LoadedModel, batch_size: int, compiler: Compiler, rounds: int) -> dict[str, Any]:
    """Checks that all alternatives give the same logits, then times them in turns."""
    shape = (batch_size, *model.input_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    alternatives = {"prediction": compiled(model, batch_size, compiler, None)}
    for targets in TARGETS:
        alternatives[f"explanation of {targets}"] = compiled(model, batch_size, compiler, targets)
    found = {
        name: np.stack([output.logits for output in run(images)])
        for name, run in alternatives.items()
    }
    for name, logits in found.items():
        np.testing.assert_allclose(logits, found["prediction"], rtol=1e-3, atol=1e-3, err_msg=name)
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
    parser.add_argument("--compiler", type=Compiler, default=Compiler.OPENVINO)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    model = load(ModelSpec(arguments.model, arguments.model, weights="random"))
    report = {
        "model": arguments.model,
        "compiler": arguments.compiler,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "results": [
            measure(model, size, arguments.compiler, arguments.rounds) for size in BATCH_SIZES
        ],
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
