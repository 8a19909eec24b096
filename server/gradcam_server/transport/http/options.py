"""The options of a request as query parameters or fields of a form.

They have the names and values of the flags of ``gradcam explain``.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.domain.requests import (
    Colormap,
    HeatmapFormat,
    LayerFusion,
    Method,
    ResizeMode,
    ScoreType,
)
from gradcam_server.errors import InvalidRequestError

Pairs: TypeAlias = Iterable[tuple[str, str]]
"""Names and values of parameters; a name may repeat."""

_MAX_INT32 = 2**31 - 1
_MAX_VALUE_CHARS = 1000
_HEATMAPS = {
    "raw": HeatmapFormat.RAW_FLOAT32,
    "image": HeatmapFormat.IMAGE_FLOAT32,
    "gray_png": HeatmapFormat.GRAY_PNG,
    "overlay_jpeg": HeatmapFormat.OVERLAY_JPEG,
    "overlay_png": HeatmapFormat.OVERLAY_PNG,
}


@dataclass(frozen=True)
class Option:
    """An option of a request.

    Attributes:
        field: The field of ``ExplainImageRequest``, as errors name it.
        kind: The type of a value: a number, a text, or one of the values of an enumeration.
        description: What it does.
        values: The allowed values of a choice.
        repeats: Whether it may be given several times.
    """

    field: str
    kind: Literal["integer", "number", "boolean", "string"]
    description: str
    values: tuple[str, ...] = ()
    repeats: bool = False


OPTIONS: dict[str, Option] = {
    "class": Option(
        "targets",
        "string",
        "Class to explain: an index, a name or a WordNet id. A name of digits alone is an index.",
        repeats=True,
    ),
    "top_k": Option("top_k", "integer", "Explain this many classes of the highest score; 1."),
    "against": Option("targets", "string", "Explain the difference of each class from this class."),
    "layer": Option("layers", "string", "Layer to explain.", repeats=True),
    "fusion": Option(
        "layer_fusion", "string", "How maps of several layers are fused.", tuple(LayerFusion)
    ),
    "method": Option("method", "string", "How the class is explained.", tuple(Method)),
    "score": Option("score_type", "string", "The explained score.", tuple(ScoreType)),
    "passes": Option("pass_count", "integer", "Passes of a method of many passes."),
    "smooth": Option("smooth_grad", "integer", "SmoothGrad: the number of noisy copies."),
    "resize": Option(
        "resize_mode", "string", "How the image is brought to the model's size.", tuple(ResizeMode)
    ),
    "colormap": Option("heatmaps.colormap", "string", "Colours of overlays.", tuple(Colormap)),
    "alpha": Option("heatmaps.alpha", "number", "Weight of the colours of overlays, 0 to 1; 0.4."),
    "quality": Option("heatmaps.jpeg_quality", "integer", "Quality of JPEG, 1 to 100; 90."),
    "heatmap": Option(
        "heatmaps.format", "string", "Form of the heat maps; raw.", tuple(_HEATMAPS), repeats=True
    ),
    "predictions": Option("prediction_count", "integer", "Number of predictions; 5."),
    "logits": Option("include_logits", "boolean", "Whether the answer has all logits."),
    "priority": Option("priority", "integer", "1 is the most urgent, and the default."),
}
SIZE = ("height", "width")
"""The parameters of raw pixels."""
FIELDS: Mapping[str, str] = {
    **{option.field: name for name, option in OPTIONS.items()},
    "targets": "class",
    "heatmaps": "heatmap",
    "smooth_grad.sample_count": "smooth",
    "encoded_image": "image",
    "raw_image": "image",
    "raw_image.height_px": "height",
    "raw_image.width_px": "width",
    "raw_image.data": "image",
}
"""Names of parameters, by the fields of the proto file that errors name."""

# Proto enumerations have the names of the domain's values: METHOD_GRAD_CAM is Method.GRAD_CAM.
_ENUMS: dict[str, tuple[type[StrEnum], str, Callable[[str], Any]]] = {
    "fusion": (LayerFusion, "LAYER_FUSION_", pb.LayerFusion.Value),
    "method": (Method, "METHOD_", pb.Method.Value),
    "score": (ScoreType, "SCORE_TYPE_", pb.ScoreType.Value),
    "resize": (ResizeMode, "RESIZE_MODE_", pb.ResizeMode.Value),
    "colormap": (Colormap, "COLORMAP_", pb.Colormap.Value),
}


def to_message(pairs: Pairs, default_heatmap: str = "raw") -> pb.ExplainImageRequest:
    """Reads options into a request without an image and a model.

    Args:
        pairs: The options.
        default_heatmap: The form of the heat maps if the options name none.

    Raises:
        InvalidRequestError: An option is unknown, repeated, or has no such value.
    """
    given = _collect(pairs)
    message = pb.ExplainImageRequest(
        targets=_targets(given.get("class", []), given.get("against", [])),
        layers=given.get("layer", ()),
        include_logits=_flag(given.get("logits")),
        layer_fusion=_choice(given, "fusion"),
        method=_choice(given, "method"),
        score_type=_choice(given, "score"),
        resize_mode=_choice(given, "resize"),
        top_k=_integer(given, "top_k"),
        pass_count=_integer(given, "passes"),
        prediction_count=_integer(given, "predictions"),
        priority=_integer(given, "priority") or 0,
        heatmaps=_heatmaps(given, default_heatmap),
    )
    if (samples := _integer(given, "smooth", 1)) is not None:
        message.smooth_grad.sample_count = samples
    return message


def read_size(pairs: Pairs) -> tuple[int, int]:
    """Returns the height and width of raw pixels.

    Raises:
        InvalidRequestError: One of them is missing, or no positive number.
    """
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name in SIZE:
            given.setdefault(name, []).append(value)
    height, width = (_integer(given, name, 1) for name in SIZE)
    if height is None or width is None:
        raise InvalidRequestError(
            "height", "raw pixels need the parameters height and width, in pixels"
        )
    return height, width


def _collect(pairs: Pairs) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name in SIZE:
            continue
        if (option := OPTIONS.get(name)) is None:
            raise InvalidRequestError(
                _short(name), f"unknown option {_short(name)!r}; there are: {', '.join(OPTIONS)}"
            )
        if name in given and not option.repeats:
            raise InvalidRequestError(name, f"{name} is given twice; give it once")
        if len(value) > _MAX_VALUE_CHARS:
            raise InvalidRequestError(
                name,
                f"{name} has {len(value):,} characters; it may have {_MAX_VALUE_CHARS:,}",
            )
        given.setdefault(name, []).append(value)
    return given


def _targets(classes: list[str], against: list[str]) -> list[pb.Target]:
    if against and not classes:
        raise InvalidRequestError("against", "against needs a class to compare: add class=NAME")
    targets = []
    for name in classes:
        target = pb.Target()
        if name.isascii() and name.isdigit() and len(name) < 10:
            target.class_index = int(name)
        else:
            target.class_name = name
        for other in against:
            if other.isascii() and other.isdigit() and len(other) < 10:
                target.against_class_index = int(other)
            else:
                target.against_class_name = other
        targets.append(target)
    return targets


def _heatmaps(given: Mapping[str, list[str]], default: str) -> list[pb.HeatmapRequest]:
    alpha, quality = _alpha(given.get("alpha")), _integer(given, "quality", 1)
    forms = []
    for name in given.get("heatmap", [default]):
        found = _HEATMAPS.get(name.replace("-", "_"))
        if found is None:
            raise _no_such("heatmap", name, _HEATMAPS)
        forms.append(
            pb.HeatmapRequest(
                format=f"HEATMAP_FORMAT_{found.name}",
                alpha=alpha,
                colormap=_choice(given, "colormap"),
                jpeg_quality=quality,
            )
        )
    return forms


def _choice(given: Mapping[str, list[str]], name: str) -> Any:
    """Returns the number of a choice; 0, the default, if it is not given."""
    if name not in given:
        return 0
    values, prefix, number = _ENUMS[name]
    (value,) = given[name]
    try:
        return number(prefix + values(value).name)
    except ValueError:
        raise _no_such(name, value, values) from None


def _integer(given: Mapping[str, list[str]], name: str, minimum: int = 0) -> int | None:
    if name not in given:
        return None
    text = given[name][0]
    digits = text.removeprefix("-")
    value = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 12 else None
    if value is None or len(given[name]) > 1 or not minimum <= value <= _MAX_INT32:
        raise InvalidRequestError(
            name, f"{name} is {_short(text)!r}; it must be one number from {minimum} on"
        )
    return value


def _alpha(given: list[str] | None) -> float | None:
    if given is None:
        return None
    try:
        alpha = float(given[0])
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha <= 1:
        raise InvalidRequestError(
            "alpha", f"alpha is {_short(given[0])!r}; it must be a number from 0 to 1"
        )
    return alpha


def _flag(given: list[str] | None) -> bool:
    value = given[0].lower() if given else "false"
    if value not in ("true", "false", "1", "0"):
        raise InvalidRequestError(
            "logits", f"logits is {_short(value)!r}; it must be true or false"
        )
    return value in ("true", "1")


def _no_such(name: str, value: str, known: Iterable[str]) -> InvalidRequestError:
    return InvalidRequestError(
        name, f"{name} is {_short(value)!r}; it must be one of: {', '.join(known)}"
    )


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."
