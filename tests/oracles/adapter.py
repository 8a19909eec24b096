"""The interface of the oracles to the compiled graph."""

from functools import lru_cache
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphTarget
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.options import Precision
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.graphs.compilers.base import REFERENCE, find_compiler
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.loaded import LoadedModel

_LARGEST_BATCH = 64


def explain(
    model: keras.Model,
    layers: tuple[str, ...],
    method: Method,
    images: NDArray[Any],
    classes: NDArray[Any],
) -> list[NDArray[np.float32]]:
    """Explains the logits of some classes.

    Args:
        model: From preprocessed images to logits, in float32 or float64.
        layers: Names of the layers to explain.
        method: The method.
        images: Preprocessed, float32, shape (B, H, W, 3).
        classes: Shape (B, T).

    Returns:
        For each layer, the maps before the final ReLU, shape (B, T, h, w).
    """
    size = min(len(images), _LARGEST_BATCH)
    graph = _graph(model, layers, method, classes.shape[1], size)
    items = [
        GraphItem(image.astype(np.float32), [GraphTarget(int(index)) for index in chosen])
        for image, chosen in zip(images, classes, strict=True)
    ]
    batches = (items[start : start + size] for start in range(0, len(items), size))
    maps = [output.maps for batch in batches for output in graph.run(batch, size)]
    return [np.stack(of_layer) for of_layer in zip(*maps, strict=True)]


@lru_cache(maxsize=4)
def _graph(
    model: keras.Model, layers: tuple[str, ...], method: Method, targets: int, size: int
) -> CompiledGraph:
    network = _network(model)
    labels = ClassLabels([ClassLabel(str(index)) for index in range(network.class_count)])
    loaded = LoadedModel(model.name, network, Preprocessing.NONE, labels, "the oracle's")
    # "Perturbed" images are float32, as these are.
    key = GraphKey(model.name, layers, method, ScoreType.LOGIT, targets, perturbed=True)
    graph = ExplanationGraph(loaded, key, CompilationCounter())
    # Without compile_graph, which would run the batch four times more, to time it.
    executables = {size: find_compiler(REFERENCE)(graph, Precision.FLOAT32)(size)}
    return CompiledGraph(key, network.input_size, REFERENCE, executables, {size: 0.0})


@lru_cache(maxsize=2)
def _network(model: keras.Model) -> KerasNetwork:
    return KerasNetwork(model)
