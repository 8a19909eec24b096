"""Resolves a request: its model, layers, classes, passes and first graph, or why it is refused."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog, ServedModel
from gradcam_server.domain.graph_io import NO_CLASS, PIXELS, GraphKey, GraphTarget, by_rank
from gradcam_server.domain.labels import ClassLabels
from gradcam_server.domain.registry import MANY_PASS_METHODS, REGISTRY
from gradcam_server.domain.requests import ExplainRequest, LayerFusion, Method, TopK
from gradcam_server.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request that can be answered.

    Attributes:
        model: The model.
        layers: The paths of the layers.
        targets: The classes to explain.
        passes: The passes beside the first; 0 for methods of one pass.
    """

    model: ServedModel
    layers: tuple[str, ...]
    targets: Sequence[GraphTarget]
    passes: int

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
    targets = _choose_targets(request, model.labels, config.max_targets)
    return Resolved(model, layers, targets, _count_passes(request, config.max_passes))


def first_key(request: ExplainRequest, resolved: Resolved, catalog: Catalog) -> GraphKey:
    """Chooses the graph that predicts; if one pass is enough, it also explains."""
    layers, method = resolved.layers, request.method
    if method in MANY_PASS_METHODS or request.smooth_grad is not None:
        layers, method = (resolved.model.default_layer,), Method.GRAD_CAM
    count = len(resolved.targets)
    return catalog.graph_key(resolved.model, layers, method, request.score_type, count)


def mapped_layers(request: ExplainRequest, resolved: Resolved) -> tuple[str, ...]:
    """Returns the layers whose values the maps show; Integrated Gradients show the pixels'."""
    return (PIXELS,) if request.method is Method.INTEGRATED_GRADIENTS else resolved.layers


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
