"""Descriptions of a server's models: protobuf answers as frozen dataclasses."""

from dataclasses import dataclass, field
from typing import Self

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client.extents import Extent
from gradcam_client.requests import METHOD_NAMES


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """A class of a model.

    Attributes:
        name: The name of the class.
        aliases: Other names that requests may use; the WordNet id for ImageNet.
    """

    name: str
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer of a model.

    Attributes:
        name: The name of the layer.
        type: The Keras class of the layer, such as "Conv2D".
        output_shape: The shape of the layer's output; -1 is the batch size.
        explainable: Whether the layer can be explained.
        extent: The part of the model's input that the layer's raw heat maps cover, if the model
            crops or pads images itself; None is the whole input.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    explainable: bool
    extent: Extent | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of a server.

    Attributes:
        name: The name of the model in requests.
        weights: The source of the weights.
        random_weights: Whether the weights are random: the answers mean nothing.
        input_height: Height of the input, in pixels.
        input_width: Width of the input, in pixels.
        class_count: Number of classes.
        default_layer: The layer that is explained by default.
        compiled_layers: The layers whose graphs are compiled.
        batch_sizes: The compiled batch sizes.
        methods: The explanation methods: keys of ``METHODS``.
        max_target_count: Most classes, or the highest top_k, of one request.
        compilation_count: Graphs compiled since the start of the server.
        classes: The classes in the order of the output; empty from ``list_models``.
        layers: The layers in the order of the model; empty from ``list_models``.
        version: The version; empty if the model has none.
        preprocessing: As in ``ImageExplanation``.
        preprocessing_declared: As in ``ImageExplanation``.
    """

    name: str
    weights: str
    random_weights: bool
    input_height: int
    input_width: int
    class_count: int
    default_layer: str
    compiled_layers: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    methods: tuple[str, ...]
    max_target_count: int
    compilation_count: int
    classes: tuple[ClassInfo, ...] = field(repr=False)
    layers: tuple[LayerInfo, ...] = field(repr=False)
    version: str = ""
    preprocessing: str = ""
    preprocessing_declared: bool = False

    @classmethod
    def from_proto(cls, model: pb.Model) -> Self:
        """Reads the protobuf message."""
        return cls(
            name=model.name,
            version=model.version,
            preprocessing=model.preprocessing,
            preprocessing_declared=model.preprocessing_declared,
            weights=model.weights,
            random_weights=model.random_weights,
            input_height=model.input_height_px,
            input_width=model.input_width_px,
            class_count=model.class_count,
            default_layer=model.default_layer,
            compiled_layers=tuple(model.compiled_layers),
            batch_sizes=tuple(model.batch_sizes),
            methods=tuple(METHOD_NAMES.get(method, "unknown") for method in model.methods),
            max_target_count=model.max_target_count,
            compilation_count=model.compilation_count,
            classes=tuple(ClassInfo(known.name, tuple(known.aliases)) for known in model.classes),
            layers=tuple(
                LayerInfo(
                    layer.name,
                    layer.type,
                    tuple(layer.output_shape),
                    layer.explainable,
                    Extent.of_field(layer, "extent"),
                )
                for layer in model.layers
            ),
        )
