"""The catalog: the served models and their warm graphs, free of TensorFlow.

The engine makes it once it is warm, and the front end reads it to find the graph of a request.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradcam_server.domain.graph_io import PIXELS, GraphKey
from gradcam_server.domain.labels import ClassLabels
from gradcam_server.domain.layers import Extent, LayerInfo
from gradcam_server.domain.model_spec import model_id
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.registry import REGISTRY
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.errors import InvalidRequestError, NotFoundError


@dataclass(frozen=True)
class ServedModel:
    """A model that the engine holds.

    Attributes:
        name: The name by which requests choose it.
        version: Its version; empty if it has none.
        labels: The classes.
        layers: The layers, in the order of the model.
        default_layer: The layer that is explained by default.
        input_size: (height, width) of the input in pixels.
        preprocessing: How pixels become the network's input.
        weights: A text that says where the weights come from.
        random_weights: Whether the weights are random.
        compiler: The compiler of Grad-CAM at the default layer; empty before the model is warm.
        streams: How many batches it computes at the same time on a device once images wait.
        preprocessing_declared: Whether the preprocessing was declared, or is known of a built-in
            model; otherwise it is the default for models from files.
        alone_s: Seconds that Grad-CAM of one image at the default layer takes, as measured; 0
            before the model is warm.
        image_s: Seconds of all devices that an image takes in a batch of the best size; likewise.
    """

    name: str
    version: str
    labels: ClassLabels
    layers: tuple[LayerInfo, ...]
    default_layer: str
    input_size: tuple[int, int]
    preprocessing: Preprocessing
    weights: str
    random_weights: bool = False
    compiler: str = ""
    streams: int = 1
    preprocessing_declared: bool = True
    alone_s: float = 0.0
    image_s: float = 0.0

    @property
    def id(self) -> str:
        """Name and version in one text, as in ``GraphKey``."""
        return model_id(self.name, self.version)

    def extent(self, layer: str) -> Extent | None:
        """Returns the part of the input that a layer's map covers; None is the whole input.

        Args:
            layer: The path of the layer; ``PIXELS`` and unknown layers cover the whole input.
        """
        return next((known.extent for known in self.layers if known.name == layer), None)

    def map_size(self, layer: str) -> int:
        """Returns the maximum number of values of a layer's map; of the input's if unknown."""
        shape = next((known.output_shape[1:3] for known in self.layers if known.name == layer), ())
        sizes = (size or length for size, length in zip(shape, self.input_size, strict=False))
        return math.prod(sizes if shape else self.input_size)

    def resolve_layers(self, names: Sequence[str]) -> tuple[str, ...]:
        """Finds layers by path, or by the last part of the path where it is unique.

        Returns:
            Paths; the default layer's if there are no names.

        Raises:
            NotFoundError: The model has no such layer.
            InvalidRequestError: A layer is ambiguous or cannot be explained.
        """
        return tuple(self._resolve_layer(name) for name in names) or (self.default_layer,)

    def _resolve_layer(self, name: str) -> str:
        by_name = {layer.name: layer for layer in self.layers}
        found = [path for path in by_name if path == name] or [
            path for path in by_name if path.rpartition("/")[2] == name
        ]
        if len(found) > 1:
            raise InvalidRequestError(
                "layers",
                f"layer {name!r} of {self.id} is ambiguous; choose one of: {', '.join(found)}",
            )
        if not found:
            candidates = [path for path, layer in by_name.items() if layer.explainable]
            close = difflib.get_close_matches(name, candidates, n=3)
            raise NotFoundError(
                "layers",
                f"model {self.id} has no layer {name!r}; the default is "
                f"{self.default_layer!r}, and candidates are: "
                f"{', '.join(dict.fromkeys([*close, *candidates[-8:]]))} "
                f"({len(candidates)} in all; see gradcam layers)",
            )
        layer = by_name[found[0]]
        if not layer.explainable:
            raise InvalidRequestError(
                "layers",
                f"layer {name!r} of {self.id} cannot be explained: it is the input, or its "
                f"output {layer.output_shape} has no positions; choose one with (batch, height, "
                f"width, channels), such as {self.default_layer!r}",
            )
        return layer.name


@dataclass(frozen=True)
class Catalog:
    """All models of an engine, and its compiled graphs.

    Attributes:
        models: The models; the first is the default, and so is the first version of each name.
        warm: The graphs that were compiled before serving.
        batch_sizes: The compiled batch sizes, ascending.
        max_targets: Maximum number of classes to explain in one request.
    """

    models: tuple[ServedModel, ...]
    warm: tuple[GraphKey, ...]
    batch_sizes: tuple[int, ...]
    max_targets: int

    def find_model(self, name: str, version: str = "") -> ServedModel:
        """Finds a model.

        Args:
            name: Its name; empty is the first model's.
            version: Its version; empty is the first version of that name.

        Raises:
            NotFoundError: No such model.
        """
        named = [model for model in self.models if model.name == (name or self.models[0].name)]
        if not named:
            names = ", ".join(dict.fromkeys(model.name for model in self.models))
            raise NotFoundError("model", f"unknown model {name!r}; this server has: {names}")
        for model in named:
            if version in ("", model.version):
                return model
        versions = ", ".join(model.version or "none" for model in named)
        raise NotFoundError(
            "model_version",
            f"model {named[0].name} has no version {version!r}; its versions are: {versions}",
        )

    def compiled_layers(self, model: ServedModel) -> list[str]:
        """Returns the layers of a model for which a graph is warm."""
        layers = (key.layers for key in self.warm if key.model == model.id)
        return list(dict.fromkeys(name for names in layers for name in names))

    def graph_key(
        self,
        model: ServedModel,
        layers: tuple[str, ...],
        method: Method,
        score_type: ScoreType,
        target_count: int,
    ) -> GraphKey:
        """Returns the graph that answers a request of one pass; ``layers`` are paths."""
        keys = graph_keys(model, layers, method, score_type, self.max_targets)
        return next(key for key in keys if key.max_targets >= target_count)


def graph_keys(
    model: ServedModel,
    layers: tuple[str, ...],
    method: Method,
    score_type: ScoreType,
    max_targets: int,
) -> list[GraphKey]:
    """Returns the graphs for one target and for ``max_targets``, or only the second.

    A further target costs a backward pass, which a request for one target should not pay. It is
    nearly free without a gradient, and at the default layer, behind which only the head comes.
    """
    row = REGISTRY[method]
    is_cheap = layers == (model.default_layer,) and not row.decomposes
    counts = [max_targets] if is_cheap or not row.needs_gradient else sorted({1, max_targets})
    return [GraphKey(model.id, layers, method, score_type, count) for count in counts]


def many_pass_keys(keys: Sequence[GraphKey], default_layer: str) -> list[GraphKey]:
    """Returns the graphs of perturbed images for the methods of many passes.

    Args:
        keys: Graphs of one pass. Each has one of SmoothGrad over its method; its layers and its
            score have those of Score-CAM, and its score that of Integrated Gradients.
        default_layer: The model's.
    """
    found = []
    for key in keys:
        channels = REGISTRY[Method.SCORE_CAM].default_passes
        most = replace(key, method=Method.GRAD_CAM, perturbed=True)
        found.append(replace(most, channel_count=channels))
        for count in sorted({1, key.max_targets}):
            few = replace(most, max_targets=count)
            found += [
                replace(few, method=key.method),
                replace(few, layers=(default_layer,)),
                replace(few, method=Method.HIRES_CAM, layers=(PIXELS,)),
            ]
    return list(dict.fromkeys(found))
