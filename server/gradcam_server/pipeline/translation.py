"""Translates a request into terms of the graph, and the graph's output into the answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog, ServedModel
from gradcam_server.domain.graph_io import (
    NO_CLASS,
    PIXELS,
    GraphKey,
    GraphOutput,
    GraphTarget,
    by_rank,
)
from gradcam_server.domain.labels import ClassLabels
from gradcam_server.domain.layers import Extent
from gradcam_server.domain.registry import MANY_PASS_METHODS, REGISTRY
from gradcam_server.domain.requests import (
    ExplainedImage,
    ExplainRequest,
    Explanation,
    LayerFusion,
    Method,
    Prediction,
    ScoreType,
    Stats,
    TopK,
)
from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.geometry import Placement
from gradcam_server.images.render import RenderedMap, needs_image
from gradcam_server.methods.fusion import fuse_layer_cam

# The factor p (1 - p) of a probability's gradient; below it float32 has lost all precision.
_SATURATED = 1e-5
# Combinations of options that a resolver remembers. Some have free values, such as a noise level.
_MAX_KNOWN = 256
# A class may be named with any number of spaces.
_MAX_NAMES_LENGTH = 1000
# The fields of a request by which it is resolved: they have few values.
_UNRESOLVED = {"image", "resize_mode", "prediction_count", "priority", "deadline", "caller"}
_options = attrgetter(
    *(field.name for field in fields(ExplainRequest) if field.name not in _UNRESOLVED)
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request that can be answered.

    Attributes:
        model: The model.
        layers: The paths of the layers of the maps; for Integrated Gradients the pixels.
        extents: For each layer the part of the input that its maps cover; None is the whole input.
        map_size: The maximum number of values of a map at the layers' resolution.
        targets: The classes to explain.
        passes: The passes beside the first; 0 for methods of one pass.
        graph: The graph that predicts; without further passes it also explains.
        needs_image: Whether a heat map is as large as the image.
    """

    model: ServedModel
    layers: tuple[str, ...]
    extents: tuple[Extent | None, ...]
    map_size: int
    targets: tuple[GraphTarget, ...]
    passes: int
    graph: GraphKey
    needs_image: bool

    @property
    def is_many_pass(self) -> bool:
        """Whether perturbed images are computed."""
        return bool(self.passes and self.targets)


def resolve(request: ExplainRequest, catalog: Catalog, config: ServeConfig) -> Resolved:
    """Finds the model, layers and classes of a request.

    Raises:
        NotFoundError: No such model or layer.
        InvalidRequestError: A bad class or option, or too many of them.
    """
    model = catalog.find_model(request.model, request.model_version)
    for field, count, limit in (
        ("layers", len(request.layers), config.max_layers),
        ("heatmaps", len(request.forms), config.max_formats),
    ):
        if count > limit:
            raise InvalidRequestError(field, f"{count} {field}; a request may have {limit} here")
    layers = model.resolve_layers(request.layers)
    _check_fusion(request, model, layers)
    if request.method is Method.INTEGRATED_GRADIENTS:
        layers = (PIXELS,)
    targets = tuple(_choose_targets(request, model.labels, config.max_targets))
    graph_layers, method = layers, request.method
    if method in MANY_PASS_METHODS or request.smooth_grad is not None:
        graph_layers, method = (model.default_layer,), Method.GRAD_CAM
    return Resolved(
        model=model,
        layers=layers,
        extents=tuple(model.extent(layer) for layer in layers),
        map_size=max(model.map_size(layer) for layer in layers),
        targets=targets,
        passes=_count_passes(request, config.max_passes),
        graph=catalog.graph_key(model, graph_layers, method, request.score_type, len(targets)),
        needs_image=bool(targets) and needs_image(request.forms),
    )


class Resolver:
    """Resolves requests. It remembers the latest options, which most requests share.

    Args:
        catalog: The models and their graphs.
        config: The settings.
    """

    def __init__(self, catalog: Catalog, config: ServeConfig) -> None:
        self._catalog, self._config = catalog, config
        self._known: dict[tuple[object, ...], Resolved] = {}

    def __call__(self, request: ExplainRequest) -> Resolved:
        """Finds the model, layers and classes of a request, as ``resolve``."""
        options = _options(request)
        resolved = self._known.get(options)
        if resolved is None:
            resolved = resolve(request, self._catalog, self._config)
            if not _is_short(request):
                return resolved
            if len(self._known) == _MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[options] = resolved
        return resolved


class ClassMap(NamedTuple):
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


def class_maps(output: GraphOutput, resolved: Resolved, fusion: LayerFusion) -> Iterator[ClassMap]:
    """Yields the maps of an output: one for each target and layer, or fused over the layers."""
    layers, extents = resolved.layers, resolved.extents
    for target in range(len(output.classes)):
        of_layers = [of_layer[target] for of_layer in output.maps]
        if fusion is LayerFusion.LAYER_CAM:
            yield ClassMap(target, " + ".join(layers), fuse_layer_cam(of_layers), extents[0])
        else:
            for layer, values, extent in zip(layers, of_layers, extents, strict=True):
                yield ClassMap(target, layer, values, extent)


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
            _explanation(request, resolved, output, class_map, rendering, placement)
            for class_map, rendering in zip(maps, rendered, strict=True)
        ),
        logits=output.logits,
        probabilities=output.probabilities,
        stats=stats,
        preprocessing=model.preprocessing,
        preprocessing_declared=model.preprocessing_declared,
    )


def _is_short(request: ExplainRequest) -> bool:
    """Returns whether a request takes little memory when it is remembered."""
    if isinstance(request.targets, TopK):
        return True
    names = (name for target in request.targets for name in (target.name, target.against))
    return sum(len(name) for name in names if isinstance(name, str)) <= _MAX_NAMES_LENGTH


def _count_passes(request: ExplainRequest, max_passes: int) -> int:
    """Returns how many perturbed images an explanation takes; 0 is none.

    Raises:
        InvalidRequestError: The passes are more than ``max_passes``, or are not for this method.
    """
    smooth = request.smooth_grad
    if request.method in MANY_PASS_METHODS:
        if smooth is not None:
            raise InvalidRequestError(
                "smooth_grad", f"SmoothGrad is for one-pass methods, not for {request.method}"
            )
        default = REGISTRY[request.method].default_passes
        passes = default if request.pass_count is None else request.pass_count
        if request.method is Method.SCORE_CAM:
            passes *= max(len(request.layers), 1)  # channels of each layer
        field = "pass_count"
    elif request.pass_count is not None:
        raise InvalidRequestError(
            "pass_count", f"pass_count is for {', '.join(sorted(MANY_PASS_METHODS))}"
        )
    elif smooth is not None:
        passes, field = smooth.sample_count, "smooth_grad.sample_count"
    else:
        return 0
    if not 1 <= passes <= max_passes:
        raise InvalidRequestError(
            field,
            f"this explanation costs {passes} passes; a request may cost 1 to "
            f"{max_passes} here (--max-passes)",
        )
    return passes


def _check_fusion(request: ExplainRequest, model: ServedModel, layers: Sequence[str]) -> None:
    if request.layer_fusion is LayerFusion.NONE:
        return
    if len({model.extent(layer) for layer in layers}) > 1:
        raise InvalidRequestError(
            "layer_fusion",
            f"the maps of {' and '.join(layers)} cannot be fused: {model.id} crops or pads between "
            "these layers, so they cover different parts of the image; choose layers on one side "
            "of that",
        )


def _choose_targets(
    request: ExplainRequest, labels: ClassLabels, max_targets: int
) -> list[GraphTarget]:
    limit = min(max_targets, len(labels))
    if isinstance(request.targets, TopK):
        if not 0 <= request.targets.k <= limit:
            raise InvalidRequestError(
                "top_k", f"top_k is {request.targets.k}; it must be 0 to {limit} here"
            )
        return [GraphTarget(by_rank(rank)) for rank in range(request.targets.k)]
    if len(request.targets) > limit:
        raise InvalidRequestError(
            "targets", f"{len(request.targets)} targets; a request may have {limit} here"
        )
    return [
        GraphTarget(
            labels.index(target.name),
            NO_CLASS if target.against is None else labels.index(target.against),
        )
        for target in request.targets
    ]


def _predictions(output: GraphOutput, labels: ClassLabels, count: int) -> tuple[Prediction, ...]:
    best = _best(output.logits, count)
    indices = best.tolist()
    return tuple(
        map(
            Prediction,
            indices,
            map(labels.name, indices),
            output.probabilities[best].tolist(),
            output.logits[best].tolist(),
        )
    )


def _best(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Returns the classes of the highest logits, highest first; NaN counts as the lowest."""
    ascending = -logits
    if 0 < count < len(logits):
        # Sorting all takes several times as long as finding the last one that counts.
        parted = ascending.copy()
        parted.partition(count - 1)
        candidates = (ascending <= parted[count - 1]).nonzero()[0]
        if len(candidates) >= count:  # else the last one is NaN
            return candidates[ascending[candidates].argsort(kind="stable")[:count]]
    # Stable, so that equal scores come in the order of the classes, as in the graph.
    return ascending.argsort(kind="stable")[:count]


def _explanation(
    request: ExplainRequest,
    resolved: Resolved,
    output: GraphOutput,
    class_map: ClassMap,
    rendered: RenderedMap,
    placement: Placement,
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
        image_extent=placement.on_image(class_map.extent),
    )
