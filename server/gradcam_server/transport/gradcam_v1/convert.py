"""Converts between the messages of gradcam.v1 and the domain's types."""

from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.domain.catalog import Catalog, ServedModel
from gradcam_server.domain.layers import Extent
from gradcam_server.domain.requests import (
    Colormap,
    ExplainedImage,
    ExplainRequest,
    Explanation,
    HeatmapForm,
    HeatmapFormat,
    LayerFusion,
    Method,
    RawImage,
    ResizeMode,
    ScoreType,
    SmoothGrad,
    Target,
    TopK,
)
from gradcam_server.domain.schedule import DispatchReason
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.gradcam_v1.wire import ReceivedRequest

_E = TypeVar("_E", bound=StrEnum)


def _by_number(enum: EnumTypeWrapper, values: type[_E], default: _E | None = None) -> dict[int, _E]:
    """Pairs the numbers of a proto enum with values of the same name; 0 with the default."""
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    known = {} if default is None else {0: default}
    return known | {enum.Value(prefix + value.name): value for value in values}


_METHODS = _by_number(pb.Method, Method, Method.GRAD_CAM)
_SCORE_TYPES = _by_number(pb.ScoreType, ScoreType, ScoreType.LOGIT)
_LAYER_FUSIONS = _by_number(pb.LayerFusion, LayerFusion, LayerFusion.NONE)
_RESIZE_MODES = _by_number(pb.ResizeMode, ResizeMode, ResizeMode.STRETCH)
_COLORMAPS = _by_number(pb.Colormap, Colormap, Colormap.JET)
_FORMATS = _by_number(pb.HeatmapFormat, HeatmapFormat)
# The other way, for answers; the stubs' type of a number is none that exists when they run.
_METHOD_NUMBERS: dict[Method, Any] = {value: number for number, value in _METHODS.items()}
_SCORE_TYPE_NUMBERS: dict[ScoreType, Any] = {
    value: number for number, value in _SCORE_TYPES.items()
}
_FORMAT_NUMBERS: dict[HeatmapFormat, Any] = {value: number for number, value in _FORMATS.items()}
_DEFAULT_TARGETS = TopK()
_REASON_NUMBERS: dict[str, Any] = {
    value: number for number, value in _by_number(pb.DispatchReason, DispatchReason).items()
}


def to_request(
    message: pb.ExplainImageRequest | ReceivedRequest,
    *,
    caller: str = "",
    deadline: float | None = None,
) -> ExplainRequest:
    """Reads a request.

    Args:
        message: The request.
        caller: Whose share of the server the request uses.
        deadline: Time of ``perf_counter`` at which the answer is of no more use.

    Raises:
        InvalidRequestError: A field is missing or out of range.
    """
    if isinstance(message, ReceivedRequest):
        image, options = message.image, _received_options(message.options)
    else:
        image, options = _image(message), _options(message)
    return ExplainRequest(image=image, deadline=deadline, caller=caller, **options)


@lru_cache(maxsize=256)
def _received_options(data: bytes) -> dict[str, Any]:
    return _options(pb.ExplainImageRequest.FromString(data))


def _options(message: pb.ExplainImageRequest) -> dict[str, Any]:
    """Returns all fields of an ``ExplainRequest`` that the message says, beside its image."""
    return {
        "model": message.model,
        "targets": _targets(message),
        "layers": tuple(message.layers),
        "layer_fusion": _enum("layer_fusion", message.layer_fusion, _LAYER_FUSIONS),
        "method": _enum("method", message.method, _METHODS),
        "score_type": _enum("score_type", message.score_type, _SCORE_TYPES),
        "pass_count": message.pass_count if message.HasField("pass_count") else None,
        "smooth_grad": _smooth_grad(message),
        "resize_mode": _enum("resize_mode", message.resize_mode, _RESIZE_MODES),
        "forms": tuple(_form(form) for form in message.heatmaps) or ExplainRequest.forms,
        "prediction_count": _prediction_count(message),
        "model_version": message.model_version,
        "priority": _priority(message),
    }


def to_response(explained: ExplainedImage, *, include_logits: bool) -> pb.ExplainImageResponse:
    """Writes an answer; its logits only if ``include_logits``."""
    stats = explained.stats
    return pb.ExplainImageResponse(
        model=explained.model,
        model_version=explained.model_version,
        preprocessing=explained.preprocessing,
        preprocessing_declared=explained.preprocessing_declared,
        image_height_px=explained.image_height,
        image_width_px=explained.image_width,
        predictions=[
            pb.Prediction(
                class_index=prediction.index,
                class_name=prediction.name,
                probability=prediction.probability,
                logit=prediction.logit,
            )
            for prediction in explained.predictions
        ],
        explanations=[_explanation(explanation) for explanation in explained.explanations],
        logits=explained.logits.tolist() if include_logits else (),
        stats=pb.ServingStats(
            decode_us=stats.decode_us,
            queue_us=stats.queue_us,
            compile_us=stats.compile_us,
            compute_us=stats.compute_us,
            render_us=stats.render_us,
            batch_size=stats.batch_size,
            padded_batch_size=stats.padded_batch_size,
            pass_count=stats.pass_count,
            dispatch_reason=_REASON_NUMBERS.get(
                stats.dispatch_reason, pb.DISPATCH_REASON_UNSPECIFIED
            ),
        ),
    )


def to_model(
    served: ServedModel, catalog: Catalog, compilation_count: int, *, full: bool
) -> pb.Model:
    """Describes a model, with its classes and layers if ``full``."""
    height, width = served.input_size
    model = pb.Model(
        name=served.name,
        version=served.version,
        weights=served.weights,
        random_weights=served.random_weights,
        input_height_px=height,
        input_width_px=width,
        class_count=len(served.labels),
        default_layer=served.default_layer,
        compiled_layers=catalog.compiled_layers(served),
        batch_sizes=catalog.batch_sizes,
        methods=list(_METHOD_NUMBERS.values()),
        max_target_count=min(catalog.max_targets, len(served.labels)),
        compilation_count=compilation_count,
        preprocessing=served.preprocessing,
        preprocessing_declared=served.preprocessing_declared,
    )
    if full:
        model.classes.extend(
            pb.ModelClass(name=label.name, aliases=label.aliases) for label in served.labels.labels
        )
        model.layers.extend(
            pb.Layer(
                name=layer.name,
                type=layer.type,
                output_shape=[-1 if size is None else size for size in layer.output_shape],
                explainable=layer.explainable,
                extent=_extent(layer.extent),
            )
            for layer in served.layers
        )
    return model


def _extent(extent: Extent | None) -> pb.Extent | None:
    if extent is None:
        return None
    return pb.Extent(
        top_px=extent.top, left_px=extent.left, height_px=extent.height, width_px=extent.width
    )


def _image(message: pb.ExplainImageRequest) -> bytes | RawImage:
    match message.WhichOneof("image"):
        case "encoded_image":
            return message.encoded_image
        case "raw_image":
            raw = message.raw_image
            return RawImage(raw.data, raw.height_px, raw.width_px)
        case _:
            raise InvalidRequestError("image", "no image: set encoded_image or raw_image")


def _targets(message: pb.ExplainImageRequest) -> tuple[Target, ...] | TopK:
    if not message.targets:
        return TopK(message.top_k) if message.HasField("top_k") else _DEFAULT_TARGETS
    if message.HasField("top_k"):
        raise InvalidRequestError("top_k", "both targets and top_k are set; choose one")
    return tuple(_target(target) for target in message.targets)


def _target(target: pb.Target) -> Target:
    chosen, against = target.WhichOneof("class"), target.WhichOneof("against")
    if chosen is None:
        raise InvalidRequestError("targets", "a target is empty: set class_index or class_name")
    return Target(getattr(target, chosen), getattr(target, against) if against else None)


def _smooth_grad(message: pb.ExplainImageRequest) -> SmoothGrad | None:
    if not message.HasField("smooth_grad"):
        return None
    wanted = message.smooth_grad
    noise_level = wanted.noise_level if wanted.HasField("noise_level") else SmoothGrad.noise_level
    if not 0 <= noise_level <= 1:
        raise InvalidRequestError(
            "smooth_grad.noise_level", f"noise_level is {noise_level}; it must be 0 to 1"
        )
    return SmoothGrad(wanted.sample_count or SmoothGrad.sample_count, noise_level)


def _prediction_count(message: pb.ExplainImageRequest) -> int:
    if not message.HasField("prediction_count"):
        return ExplainRequest.prediction_count
    if message.prediction_count < 0:
        raise InvalidRequestError(
            "prediction_count",
            f"prediction_count is {message.prediction_count}; it must not be negative",
        )
    return message.prediction_count


def _priority(message: pb.ExplainImageRequest) -> int:
    if message.priority < 0:
        raise InvalidRequestError(
            "priority", f"priority is {message.priority}; it must be 1, the most urgent, or more"
        )
    return message.priority or ExplainRequest.priority


def _form(message: pb.HeatmapRequest) -> HeatmapForm:
    alpha = message.alpha if message.HasField("alpha") else HeatmapForm.alpha
    quality = message.jpeg_quality if message.HasField("jpeg_quality") else HeatmapForm.jpeg_quality
    if not 0 <= alpha <= 1:
        raise InvalidRequestError("heatmaps.alpha", f"alpha is {alpha}; it must be 0 to 1")
    if not 1 <= quality <= 100:
        raise InvalidRequestError(
            "heatmaps.jpeg_quality", f"jpeg_quality is {quality}; it must be 1 to 100"
        )
    return HeatmapForm(
        format=_enum("heatmaps.format", message.format, _FORMATS),
        alpha=alpha,
        colormap=_enum("heatmaps.colormap", message.colormap, _COLORMAPS),
        jpeg_quality=quality,
    )


def _enum(field: str, number: int, known: dict[int, _E]) -> _E:
    if number not in known:
        names = ", ".join(dict.fromkeys(known.values()))
        raise InvalidRequestError(field, f"{field} is {number}; it must be one of: {names}")
    return known[number]


def _explanation(explanation: Explanation) -> pb.Explanation:
    return pb.Explanation(
        class_index=explanation.index,
        class_name=explanation.name,
        score=explanation.score,
        layer=explanation.layer,
        method=_METHOD_NUMBERS[explanation.method],
        raw_min=explanation.raw_min,
        raw_max=explanation.raw_max,
        degenerate=explanation.degenerate,
        score_type=_SCORE_TYPE_NUMBERS[explanation.score_type],
        saturated=explanation.saturated,
        against_class_index=explanation.against,
        against_class_name=explanation.against_name,
        extent=_extent(explanation.extent),
        image_extent=_extent(explanation.image_extent),
        heatmaps=[
            pb.Heatmap(
                format=_FORMAT_NUMBERS[heatmap.format],
                height_px=heatmap.height,
                width_px=heatmap.width,
                data=heatmap.data,
                normalization=_scaling(heatmap.format)[0],
                interpolation=_scaling(heatmap.format)[1],
            )
            for heatmap in explanation.heatmaps
        ],
    )


def _scaling(
    format: HeatmapFormat,
) -> tuple[pb.Normalization, pb.Interpolation]:
    if format is HeatmapFormat.RAW_FLOAT32:
        return pb.NORMALIZATION_NONE, pb.INTERPOLATION_NONE
    return pb.NORMALIZATION_MAX, pb.INTERPOLATION_BILINEAR
