"""Builds protobuf requests from options and images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, TypeAlias, TypedDict, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client.image_files import read_image_file
from gradcam_client.image_urls import ImageUrl
from gradcam_client.options import current_names, did_you_mean, spelled_out

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | NDArray[np.uint8] | ImageUrl
"""An image: the path of a file, the bytes of a file (JPEG, PNG, WebP or BMP), an ``ImageUrl``, or
uint8 RGB pixels (H, W, 3). BGR pixels, as OpenCV reads them, look like RGB pixels to the server
and give wrong answers: reverse the channels first, ``image[..., ::-1]``."""

MethodName: TypeAlias = Literal[
    "gradcam",
    "gradcam++",
    "hirescam",
    "xgradcam",
    "layercam",
    "elementwise-gradcam",
    "eigengradcam",
    "finercam",
    "eigencam",
    "scorecam",
    "integrated-gradients",
]
ScoreName: TypeAlias = Literal["logit", "probability"]
FusionName: TypeAlias = Literal["none", "layercam"]
ResizeName: TypeAlias = Literal["stretch", "center-crop", "letterbox"]
ColormapName: TypeAlias = Literal["jet", "turbo", "viridis", "inferno"]
FormatName: TypeAlias = Literal["raw", "image", "gray-png", "overlay-jpeg", "overlay-png"]

METHODS: dict[MethodName, pb.Method] = {
    "gradcam": pb.METHOD_GRAD_CAM,
    "gradcam++": pb.METHOD_GRAD_CAM_PLUS_PLUS,
    "hirescam": pb.METHOD_HIRES_CAM,
    "xgradcam": pb.METHOD_X_GRAD_CAM,
    "layercam": pb.METHOD_LAYER_CAM,
    "elementwise-gradcam": pb.METHOD_ELEMENTWISE_GRAD_CAM,
    "eigengradcam": pb.METHOD_EIGEN_GRAD_CAM,
    "finercam": pb.METHOD_FINER_CAM,
    "eigencam": pb.METHOD_EIGEN_CAM,
    "scorecam": pb.METHOD_SCORE_CAM,
    "integrated-gradients": pb.METHOD_INTEGRATED_GRADIENTS,
}
METHOD_NAMES: dict[pb.Method, MethodName] = {number: name for name, number in METHODS.items()}
MANY_PASS_METHODS = ("scorecam", "integrated-gradients")
SCORE_TYPES: dict[ScoreName, pb.ScoreType] = {
    "logit": pb.SCORE_TYPE_LOGIT,
    "probability": pb.SCORE_TYPE_PROBABILITY,
}
LAYER_FUSIONS: dict[FusionName, pb.LayerFusion] = {
    "none": pb.LAYER_FUSION_NONE,
    "layercam": pb.LAYER_FUSION_LAYER_CAM,
}
RESIZE_MODES: dict[ResizeName, pb.ResizeMode] = {
    "stretch": pb.RESIZE_MODE_STRETCH,
    "center-crop": pb.RESIZE_MODE_CENTER_CROP,
    "letterbox": pb.RESIZE_MODE_LETTERBOX,
}
COLORMAPS: dict[ColormapName, pb.Colormap] = {
    "jet": pb.COLORMAP_JET,
    "turbo": pb.COLORMAP_TURBO,
    "viridis": pb.COLORMAP_VIRIDIS,
    "inferno": pb.COLORMAP_INFERNO,
}
ClassChoice: TypeAlias = int | str
"""A class: its index, its name, a synonym or its WordNet id."""
Target: TypeAlias = ClassChoice | tuple[ClassChoice, ClassChoice]
"""A class, or a pair (a, b) for "why a rather than b"."""

HEATMAP_FORMATS: dict[FormatName, pb.HeatmapFormat] = {
    "raw": pb.HEATMAP_FORMAT_RAW_FLOAT32,
    "image": pb.HEATMAP_FORMAT_IMAGE_FLOAT32,
    "gray-png": pb.HEATMAP_FORMAT_GRAY_PNG,
    "overlay-jpeg": pb.HEATMAP_FORMAT_OVERLAY_JPEG,
    "overlay-png": pb.HEATMAP_FORMAT_OVERLAY_PNG,
}

_T = TypeVar("_T")
_Name = TypeVar("_Name", bound=str)


def _look_up(table: Mapping[_Name, _T], option: str, name: _Name) -> _T:
    if name not in table:
        similar = did_you_mean(str(name), table)
        raise ValueError(f"{option} must be one of {', '.join(table)}, not {name!r}{similar}")
    return table[name]


@dataclass(frozen=True, slots=True)
class HeatmapForm:
    """A form of heat maps to request.

    ``Raw``, ``ImageArray``, ``GrayPng``, ``OverlayJpeg`` and ``OverlayPng`` return forms.

    Attributes:
        format: A key of ``HEATMAP_FORMATS``.
        alpha: Overlays only: the weight of the colours over the image, 0 to 1; None
            takes the server's default.
        colormap: Overlays only: a key of ``COLORMAPS``.
        jpeg_quality: JPEG only: 1 to 100; None takes the server's default.

    Raises:
        ValueError: An unknown format or colormap.
    """

    format: FormatName
    alpha: float | None = None
    colormap: ColormapName = "jet"
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        _look_up(HEATMAP_FORMATS, "format", self.format)
        _look_up(COLORMAPS, "colormap", self.colormap)

    def to_proto(self) -> pb.HeatmapRequest:
        """Returns the protobuf message."""
        return pb.HeatmapRequest(
            format=HEATMAP_FORMATS[self.format],
            alpha=self.alpha,
            colormap=COLORMAPS[self.colormap],
            jpeg_quality=self.jpeg_quality,
        )


@dataclass(frozen=True, slots=True)
class SmoothGrad:
    """The mean of a one-pass method's maps over noisy copies of the image.

    Smilkov et al., arXiv:1706.03825, 2017. The noise is seeded.

    Attributes:
        sample_count: Number of noisy copies; each takes one pass.
        noise_level: Standard deviation of the noise, as a share of the range of the pixels.
    """

    sample_count: int = 16
    noise_level: float = 0.15

    def to_proto(self) -> pb.SmoothGrad:
        """Returns the protobuf message."""
        return pb.SmoothGrad(sample_count=self.sample_count, noise_level=self.noise_level)


# These functions are named like classes: ``heatmaps=[Raw(), OverlayPng()]``.


def Raw() -> HeatmapForm:  # noqa: N802
    """A float32 array (h, w) at the layer's resolution, not normalised, >= 0."""
    return HeatmapForm("raw")


def ImageArray() -> HeatmapForm:  # noqa: N802
    """A float32 array (H, W) at the image's resolution, divided by its maximum: 0 to 1."""
    return HeatmapForm("image")


def GrayPng() -> HeatmapForm:  # noqa: N802
    """An 8-bit grey PNG at the image's resolution."""
    return HeatmapForm("gray-png")


def OverlayJpeg(  # noqa: N802
    alpha: float = 0.4, colormap: ColormapName = "jet", quality: int = 90
) -> HeatmapForm:
    """A JPEG of the image with the heat map over it.

    Args:
        alpha: The weight of the colours over the image, 0 to 1.
        colormap: A key of ``COLORMAPS``.
        quality: 1 to 100.

    Raises:
        ValueError: An unknown colormap.
    """
    return HeatmapForm("overlay-jpeg", alpha, colormap, quality)


def OverlayPng(alpha: float = 0.4, colormap: ColormapName = "jet") -> HeatmapForm:  # noqa: N802
    """A PNG of the image with the heat map over it.

    Args:
        alpha: The weight of the colours over the image, 0 to 1.
        colormap: A key of ``COLORMAPS``.

    Raises:
        ValueError: An unknown colormap.
    """
    return HeatmapForm("overlay-png", alpha, colormap)


HeatmapName: TypeAlias = Literal[
    "raw", "image", "gray-png", "overlay", "overlay-jpeg", "overlay-png"
]
"""The name of a form with its default options; "overlay" is "overlay-jpeg"."""
HeatmapChoice: TypeAlias = HeatmapForm | HeatmapName

DEFAULT_HEATMAPS: tuple[HeatmapChoice, ...] = ("raw",)
_OVERLAY = "overlay"


class ExplainOptions(TypedDict, total=False):
    """The options of ``explain`` and ``explain_stream``, for type annotations."""

    model: str
    classes: Sequence[Target]
    against: ClassChoice | None
    top_k: int | None
    layers: str | Sequence[str]
    fusion: FusionName
    method: MethodName
    score: ScoreName
    passes: int | None
    smooth: int | SmoothGrad | None
    resize: ResizeName
    heatmaps: Sequence[HeatmapChoice]
    predictions: int | None
    logits: bool
    model_version: str
    priority: int


def _template(
    *,
    model: str = "",
    classes: Sequence[Target] = (),
    against: ClassChoice | None = None,
    top_k: int | None = None,
    layers: str | Sequence[str] = (),
    fusion: FusionName = "none",
    method: MethodName = "gradcam",
    score: ScoreName = "logit",
    passes: int | None = None,
    smooth: int | SmoothGrad | None = None,
    resize: ResizeName = "stretch",
    heatmaps: Sequence[HeatmapChoice] = DEFAULT_HEATMAPS,
    predictions: int | None = None,
    logits: bool = False,
    model_version: str = "",
    priority: int = 1,
) -> pb.ExplainImageRequest:
    """Builds a request without an image; the clients show these arguments as their own.

    Args:
        model: The model's name; empty is the server's first.
        classes: The classes to explain, each by its index, name, synonym or WordNet id; a pair
            (a, b) explains the contrast, why a rather than b. Not together with ``top_k``.
        against: Explain the difference of each of ``classes`` from this class.
        top_k: Explain the k best classes; None is 1 if there are no ``classes`` either; 0
            requests predictions only.
        layers: The layer to explain, or several layers; empty is the model's default layer.
        fusion: "layercam" fuses the maps of several layers into one map.
        method: The method.
        score: The score of a class to explain; "probability" is what the Keras tutorial explains.
        passes: The channels of "scorecam" or the steps of "integrated-gradients"; None is the
            server's default.
        smooth: SmoothGrad, the mean over this many noisy copies of the image; for methods of
            one pass. ``SmoothGrad(16, noise_level=0.15)`` also sets the noise.
        resize: How the image is resized to the model's input.
        heatmaps: The forms of each heat map, by name, or with options, as ``OverlayPng(0.5)``.
        predictions: Number of predictions to return; None is 5.
        logits: Whether to return the logits of all classes.
        model_version: The model's version; empty is the first version of that name.
        priority: 1 goes first; requests with higher numbers wait, for instance of offline jobs.

    Raises:
        ValueError: An option has a wrong value; a name that is not known is shown with the
            names that are.
        TypeError: An option has a wrong type.
    """
    return pb.ExplainImageRequest(
        model=model,
        targets=_targets(classes, against),
        top_k=_whole("top_k", top_k),
        layers=[layers] if isinstance(layers, str) and layers else list(layers),
        layer_fusion=_look_up(LAYER_FUSIONS, "fusion", fusion),
        pass_count=_whole("passes", passes),
        smooth_grad=_smooth_grad(smooth),
        score_type=_look_up(SCORE_TYPES, "score", score),
        method=_look_up(METHODS, "method", method),
        resize_mode=_look_up(RESIZE_MODES, "resize", resize),
        heatmaps=[form.to_proto() for form in _forms(heatmaps)],
        prediction_count=_whole("predictions", predictions),
        include_logits=logits,
        model_version=model_version,
        priority=_check_priority(priority),
    )


spell_out_options = spelled_out(_template)
"""Decorates a function that takes ``**options: Unpack[ExplainOptions]``."""


@spell_out_options
def build_template(**options: Unpack[ExplainOptions]) -> pb.ExplainImageRequest:
    """Builds a request without an image, for ``with_image``.

    Args:
        **options: Those of ``explain``.

    Raises:
        ValueError: An option has a wrong value.
        TypeError: There is no such option, or an option has a wrong type.
    """
    return _template(**current_names(options, ExplainOptions.__annotations__))


def _whole(option: str, value: int | None) -> int | None:
    if value is None or (isinstance(value, Integral) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{option} must be a whole number, not {value!r}")


def _forms(heatmaps: Sequence[HeatmapChoice]) -> list[HeatmapForm]:
    if isinstance(heatmaps, str | HeatmapForm):
        raise TypeError(f"heatmaps must be a sequence: heatmaps=[{heatmaps!r}]")
    return [_form(choice) for choice in heatmaps]


def _form(choice: HeatmapChoice) -> HeatmapForm:
    if isinstance(choice, HeatmapForm):
        return choice
    if choice == _OVERLAY:
        return OverlayJpeg()
    if isinstance(choice, str):
        names = {name: name for name in HEATMAP_FORMATS}
        return HeatmapForm(_look_up({**names, _OVERLAY: "overlay-jpeg"}, "heatmaps", choice))
    raise TypeError(f"a heat map is a name, or a form such as OverlayJpeg(), not {choice!r}")


def _smooth_grad(smooth: int | SmoothGrad | None) -> pb.SmoothGrad | None:
    if smooth is None:
        return None
    if isinstance(smooth, Integral) and not isinstance(smooth, bool):
        smooth = SmoothGrad(int(smooth))
    if not isinstance(smooth, SmoothGrad):
        raise TypeError(f"smooth must be a number of noisy copies or a SmoothGrad, not {smooth!r}")
    return smooth.to_proto()


def _check_priority(priority: int) -> int:
    if not 1 <= priority < 2**31:
        raise ValueError(f"priority must be 1 (the most urgent) or more, not {priority}")
    return priority


def with_image(template: pb.ExplainImageRequest, image: ImageInput) -> pb.ExplainImageRequest:
    """Returns a copy of a template with an image in it.

    Args:
        template: The request from ``build_template``, which is not changed.
        image: A path, the bytes of a file, an ``ImageUrl``, or uint8 RGB pixels (H, W, 3).

    Raises:
        OSError: The file cannot be read; ``FileNotFoundError`` if it does not exist.
        TypeError: The image is none of these, or the array is not uint8.
        ValueError: The array is not (H, W, 3), the path is a link or base64 text, or the file has
            another format, such as HEIC.
    """
    request = pb.ExplainImageRequest()
    request.CopyFrom(template)
    if isinstance(image, np.ndarray):
        request.raw_image.CopyFrom(_raw_image(image))
    elif isinstance(image, bytes):
        request.encoded_image = image
    elif isinstance(image, ImageUrl):
        request.encoded_image = image.read_bytes()
    elif isinstance(image, str | os.PathLike):
        request.encoded_image = read_image_file(image)
    else:
        raise TypeError(
            "an image must be a path, the bytes of a file, an ImageUrl or a uint8 RGB array "
            "(H, W, 3), "
            f"not {type(image).__name__}"
        )
    return request


@spell_out_options
def build_request(image: ImageInput, **options: Unpack[ExplainOptions]) -> pb.ExplainImageRequest:
    """Builds a request.

    Args:
        image: A path, the bytes of a file, an ``ImageUrl``, or uint8 RGB pixels (H, W, 3), not BGR.
        **options: Those of ``explain``.

    Raises:
        OSError: The file cannot be read.
        TypeError: As in ``build_template`` and ``with_image``.
        ValueError: As in ``build_template`` and ``with_image``.
    """
    return with_image(build_template(**options), image)


def _targets(classes: Sequence[Target], against: ClassChoice | None) -> list[pb.Target]:
    if isinstance(classes, str | Integral):
        raise TypeError(f"classes must be a sequence: classes=[{classes!r}]")
    if against is None:
        return [_target(target) for target in classes]
    if not classes:
        raise ValueError("against needs classes to compare, for instance classes=['tabby']")
    alone = [target for target in classes if not isinstance(target, tuple)]
    if len(alone) < len(classes):
        raise ValueError(f"give against or pairs of classes, not both: classes={classes!r}")
    return [_target((target, against)) for target in alone]


def _target(target: Target) -> pb.Target:
    chosen, against = target if isinstance(target, tuple) and len(target) == 2 else (target, None)
    message = pb.Target()
    for prefix, choice in (("", chosen), ("against_", against)):
        if isinstance(choice, str):
            setattr(message, f"{prefix}class_name", choice)
        elif isinstance(choice, Integral) and not isinstance(choice, bool):
            setattr(message, f"{prefix}class_index", int(choice))
        elif choice is not None or not prefix:
            raise TypeError(
                "a class must be an index (int), a name (str) or a pair of these "
                f"(why a rather than b), not {target!r}"
            )
    return message


def _raw_image(pixels: NDArray[np.uint8]) -> pb.RawImage:
    if pixels.dtype != np.uint8:
        remedy = (
            "; from values of 0 to 1: (image * 255).round().astype(np.uint8)"
            if np.issubdtype(pixels.dtype, np.floating)
            else ""
        )
        raise TypeError(f"pixels must be uint8 (0 to 255), not {pixels.dtype}{remedy}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        remedy = _shape_remedy(pixels.shape)
        raise ValueError(f"pixels must be RGB of shape (H, W, 3), not {pixels.shape}{remedy}")
    height, width, _ = pixels.shape
    return pb.RawImage(data=pixels.tobytes(), height_px=height, width_px=width)


def _shape_remedy(shape: tuple[int, ...]) -> str:
    match shape:
        case (_, _):
            return "; from grey: np.stack([image] * 3, axis=-1)"
        case (_, _, 1):
            return "; from grey: np.repeat(image, 3, axis=-1)"
        case (_, _, 4):
            return "; without the alpha channel: image[..., :3]"
        case (3, _, _):
            return "; from channels first: image.transpose(1, 2, 0)"
        case (_, _, _, 3):
            return "; one image at a time: image[0]"
        case _:
            return ""
