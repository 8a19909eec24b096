"""Candidates of the graph suite: the server's graphs, and the implementations of tutorials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradcam_server.bench.graph import Answer, Candidate, Run
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphTarget, by_rank
from gradcam_server.domain.layers import default_layer
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.graphs.compilers.base import COMPILERS
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph
from gradcam_server.models.loading import load

if TYPE_CHECKING:
    from gradcam_server.graphs.explanation import ExplanationGraph

# Eager code takes tenths of a second for an image.
_MAX_EAGER_BATCH = 8
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}
TARGETS = 1


def server_subjects(spec: ModelSpec, compilers: Sequence[Compiler], device: str) -> list[Candidate]:
    """Returns the server's graph by each compiler; on CPUs also in reduced precision.

    Args:
        spec: The model.
        compilers: The compilers.
        device: ``cpu`` or ``gpu``.
    """
    found = [(compiler, Precision.FLOAT32) for compiler in compilers]
    if device == "cpu":
        found += [
            (compiler, precision)
            for compiler in compilers
            if Precision.INT8 in COMPILERS[compiler].precisions
            for precision in (Precision.BFLOAT16, Precision.INT8)
        ]
    return [
        Candidate(
            f"gradcam, {compiler}"
            + ("" if precision is Precision.FLOAT32 else f", {precision.value}"),
            ServerGraph,
            (spec, compiler, precision),
            device,
            exact=precision is Precision.FLOAT32,
            environment=_on(device),
        )
        for compiler, precision in found
    ]


def tutorial_subjects(spec: ModelSpec, device: str) -> list[Candidate]:
    """Returns the two implementations that tutorials show."""
    rest: Any = {"device": device, "max_batch_size": _MAX_EAGER_BATCH, "environment": _on(device)}
    return [
        Candidate("tutorial: predict, then a tape", Tutorial, (spec, True), **rest),
        Candidate("eager tape", Tutorial, (spec, False), **rest),
    ]


def reference_subject(spec: ModelSpec) -> Candidate:
    """Returns the reference, whose answers are right: Keras' own layers under an eager tape."""
    return Candidate("reference", Tutorial, (spec, False), environment=_NO_GPU)


def _on(device: str) -> dict[str, str]:
    return _NO_GPU if device == "cpu" else {}


def _gpu_bytes() -> int:
    """Returns the peak memory of the first GPU; 0 if there is none."""
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return 0
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


class ServerGraph:
    """The server's graph, from images to arrays, called as the server calls it.

    Args:
        spec: The model.
        compiler: The compiler.
        precision: The precision of the network; int8 is calibrated on the bundled photographs.
    """

    device_bytes = staticmethod(_gpu_bytes)

    def __init__(self, spec: ModelSpec, compiler: Compiler, precision: Precision) -> None:
        self._model = load(spec)
        self._compiler, self._precision = compiler, precision

    def build(self, batch_size: int) -> Run:
        """Compiles for one batch size."""
        from gradcam_server.graphs.explanation import ExplanationGraph

        layers = (default_layer(self._model.network.layers),)
        key = GraphKey(self._model.name, layers, Method.GRAD_CAM, ScoreType.LOGIT, TARGETS)
        graph = ExplanationGraph(self._model, key, CompilationCounter())
        compiled = self._compile(graph, batch_size)
        if compiled.compiler is not self._compiler:
            raise RuntimeError(f"{self._compiler} cannot compile it in {self._precision}")
        targets = [GraphTarget(by_rank(0))]

        def run(images: NDArray[np.uint8]) -> Answer:
            outputs = compiled.run([GraphItem(image, targets) for image in images], batch_size)
            return Answer(
                np.stack([output.logits for output in outputs]),
                np.stack([output.maps[0][0] for output in outputs]),
            )

        return run

    def _compile(self, graph: ExplanationGraph, batch_size: int) -> CompiledGraph:
        if self._precision is not Precision.INT8:
            from gradcam_server.graphs.compilers.autotune import compile_graph

            return compile_graph(graph, (batch_size,), self._compiler, self._precision)
        from gradcam_server.exports.quantize import quantize
        from gradcam_server.exports.samples import load_samples
        from gradcam_server.graphs.compilers import openvino, openvino_runtime

        samples = load_samples(None, self._model.input_size).calibration
        model = quantize(openvino.convert(graph), samples, TARGETS)
        names = openvino.output_names(graph)
        executables = openvino_runtime.CpuModel(model, names, self._precision)(batch_size)
        size = self._model.input_size
        return CompiledGraph(
            graph.key, size, self._compiler, {batch_size: executables}, {batch_size: 0.0}
        )


class Tutorial:
    """Grad-CAM of a batch as tutorials write it: eager, with Keras' own layers.

    Args:
        spec: A built-in model.
        predicts: Whether ``model.predict`` runs first, as in most tutorials.
    """

    device_bytes = staticmethod(_gpu_bytes)

    def __init__(self, spec: ModelSpec, predicts: bool) -> None:
        import keras

        from gradcam_server.models.built_in import build
        from gradcam_server.models.keras_network import KerasNetwork

        self._model, _, self._preprocessing = build(spec)
        # Of a clone: KerasNetwork folds normalisations into the model that it gets.
        layer = default_layer(KerasNetwork(keras.models.clone_model(self._model)).layers)
        outputs = [self._model.get_layer(layer).output, self._model.output]
        self._both = keras.Model(self._model.inputs, outputs)
        self._predicts = predicts

    def build(self, batch_size: int) -> Run:  # noqa: ARG002 - eager code needs no preparation
        """Returns the function; there is nothing to compile."""
        import tensorflow as tf

        from gradcam_server.models.preprocessing import preprocess

        def run(images: NDArray[np.uint8]) -> Answer:
            inputs = preprocess(tf.constant(images), self._preprocessing)
            if self._predicts:
                best = self._model.predict(inputs, verbose=0, batch_size=len(images)).argmax(axis=1)
            with tf.GradientTape() as tape:
                activation, logits = self._both(inputs, training=False)
                chosen = best if self._predicts else tf.argmax(logits, axis=1)
                score = tf.gather(logits, chosen, batch_dims=1)
            gradient = tape.gradient(score, activation)
            weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
            return Answer(logits.numpy(), tf.reduce_sum(weights * activation, axis=-1).numpy())

        return run
