"""Makes the answer to a request from the graph's output and the rendered maps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import NO_CLASS, GraphOutput
from gradcam_server.domain.labels import ClassLabels
from gradcam_server.domain.layers import Extent
from gradcam_server.domain.requests import (
    ExplainedImage,
    ExplainRequest,
    Explanation,
    LayerFusion,
    Prediction,
    ScoreType,
    Stats,
)
from gradcam_server.images.geometry import Placement
from gradcam_server.images.render import RenderedMap
from gradcam_server.methods.fusion import fuse_layer_cam
from gradcam_server.pipeline.resolving import Resolved

# The factor p (1 - p) of a probability's gradient; below it float32 has lost all precision.
_SATURATED = 1e-5


@dataclass(frozen=True)
class ClassMap:
    """A map before its ReLU.

    Attributes:
        target: The index of its class among the targets.
        layer: The path of its layer, or several paths joined by " + ".
        values: The map, float32, shape (H, W).
        extent: The part of the input that it covers; None is the whole input.
    """

    target: int
    layer: str
    values: NDArray[np.float32]
    extent: Extent | None


def class_maps(
    output: GraphOutput, model: ServedModel, layers: Sequence[str], fusion: LayerFusion
) -> Iterator[ClassMap]:
    """Yields the maps of an output: one for each target and layer, or fused over the layers."""
    for target in range(len(output.classes)):
        of_layers = [of_layer[target] for of_layer in output.maps]
        if fusion is LayerFusion.LAYER_CAM:
            extent = model.extent(layers[0])
            yield ClassMap(target, " + ".join(layers), fuse_layer_cam(of_layers), extent)
        else:
            for layer, values in zip(layers, of_layers, strict=True):
                yield ClassMap(target, layer, values, model.extent(layer))


def make_answer(
    request: ExplainRequest,
    resolved: Resolved,
    output: GraphOutput,
    maps: Sequence[ClassMap],
    rendered: Sequence[RenderedMap],
    placement: Placement,
    stats: Stats,
) -> ExplainedImage:
    """Makes the answer to a request; ``rendered`` are the ``maps`` in their order."""
    model = resolved.model
    return ExplainedImage(
        model=model.name,
        model_version=model.version,
        image_height=placement.vertical.image_size,
        image_width=placement.horizontal.image_size,
        predictions=_predictions(output, model.labels, request.prediction_count),
        explanations=tuple(
            _explanation(request, resolved, output, class_map, rendering)
            for class_map, rendering in zip(maps, rendered, strict=True)
        ),
        logits=output.logits,
        probabilities=output.probabilities,
        stats=stats,
        preprocessing=model.preprocessing,
        preprocessing_declared=model.preprocessing_declared,
    )


def _predictions(output: GraphOutput, labels: ClassLabels, count: int) -> tuple[Prediction, ...]:
    # Stable, so that equal scores come in the order of the classes, as in the graph.
    best = np.argsort(-output.logits, kind="stable")[:count]
    return tuple(
        Prediction(
            int(index),
            labels.name(index),
            float(output.probabilities[index]),
            float(output.logits[index]),
        )
        for index in best
    )


def _explanation(
    request: ExplainRequest,
    resolved: Resolved,
    output: GraphOutput,
    class_map: ClassMap,
    rendered: RenderedMap,
) -> Explanation:
    labels, target = resolved.model.labels, class_map.target
    index, against = int(output.classes[target]), resolved.targets[target].against
    probability = float(output.probabilities[index])
    return Explanation(
        index=index,
        name=labels.name(index),
        score=float(output.scores[target]),
        layer=class_map.layer,
        method=request.method,
        raw_min=rendered.raw_min,
        raw_max=rendered.raw_max,
        degenerate=rendered.degenerate,
        heatmaps=rendered.heatmaps,
        score_type=request.score_type,
        saturated=request.score_type is ScoreType.PROBABILITY
        and probability * (1 - probability) < _SATURATED,
        against=None if against == NO_CLASS else against,
        against_name="" if against == NO_CLASS else labels.name(against),
        extent=class_map.extent,
    )
