"""Requests to the pipeline and its answers, free of protobuf and gRPC."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.layers import Extent

_WATCH_INTERVAL_S = 0.2


class _Option(StrEnum):
    """A choice of a request."""

    # The hash of Enum runs in Python, and options are keys for each image.
    __hash__ = str.__hash__


class Method(_Option):
    """How an explanation is computed."""

    GRAD_CAM = "gradcam"
    GRAD_CAM_PLUS_PLUS = "gradcam++"
    HIRES_CAM = "hirescam"
    X_GRAD_CAM = "xgradcam"
    LAYER_CAM = "layercam"
    ELEMENTWISE_GRAD_CAM = "elementwise-gradcam"
    EIGEN_GRAD_CAM = "eigengradcam"
    FINER_CAM = "finercam"
    EIGEN_CAM = "eigencam"
    SCORE_CAM = "scorecam"
    INTEGRATED_GRADIENTS = "integrated-gradients"


class ScoreType(_Option):
    """The score of a class that is explained."""

    LOGIT = "logit"
    PROBABILITY = "probability"


class LayerFusion(_Option):
    """How the maps of several layers are combined."""

    NONE = "none"
    LAYER_CAM = "layercam"


class ResizeMode(_Option):
    """How an image is brought to the model's input size."""

    STRETCH = "stretch"
    CENTER_CROP = "center-crop"
    LETTERBOX = "letterbox"


class HeatmapFormat(_Option):
    """The form in which a heat map is returned."""

    RAW_FLOAT32 = "raw-float32"
    IMAGE_FLOAT32 = "image-float32"
    GRAY_PNG = "gray-png"
    OVERLAY_JPEG = "overlay-jpeg"
    OVERLAY_PNG = "overlay-png"


class Colormap(_Option):
    """Colours from cold to hot."""

    JET = "jet"
    TURBO = "turbo"
    VIRIDIS = "viridis"
    INFERNO = "inferno"


@dataclass(frozen=True)
class HeatmapForm:
    """A form in which every heat map is returned.

    Attributes:
        format: Array, grey image or overlay.
        alpha: Weight of the colours over the image, 0 to 1; for overlays only.
        colormap: The colours; for overlays only.
        jpeg_quality: 1 to 100; for JPEG only.
    """

    format: HeatmapFormat = HeatmapFormat.RAW_FLOAT32
    alpha: float = 0.4
    colormap: Colormap = Colormap.JET
    jpeg_quality: int = 90


@dataclass(frozen=True)
class RawImage:
    """Uncompressed pixels: uint8 RGB, row-major, ``height * width * 3`` bytes."""

    data: bytes | memoryview
    height: int
    width: int


@dataclass(frozen=True)
class Target:
    """A class to explain, and optionally a class to contrast it with, by index or name."""

    name: int | str
    against: int | str | None = None


@dataclass(frozen=True)
class SmoothGrad:
    """The mean over noisy copies of an image, for any one-pass method.

    Attributes:
        sample_count: Number of copies.
        noise_level: Standard deviation of the noise over the range of the pixels.
    """

    sample_count: int = 16
    noise_level: float = 0.15


@dataclass(frozen=True)
class TopK:
    """The ``k`` classes of the highest score are explained; none if ``k`` is 0."""

    k: int = 1


@dataclass(frozen=True)
class ExplainRequest:
    """A request to explain one image.

    Attributes:
        image: An encoded file, or pixels.
        model: Name of the model; empty means the first.
        targets: The classes to explain, or the top k.
        layers: Names of the layers; empty means the model's default layer.
        layer_fusion: How the maps of several layers are combined.
        method: The explanation method.
        score_type: The score of each class that is explained.
        pass_count: Channels of Score-CAM, or steps of Integrated Gradients; None is
            the method's default.
        smooth_grad: The mean over noisy copies, or None.
        resize_mode: How the image is brought to the model's input size.
        forms: The forms in which each heat map is returned.
        prediction_count: Number of predictions to return.
        model_version: Version of the model; empty means its first.
        priority: Smaller is more urgent; 1 is the most urgent.
        deadline: Time of ``perf_counter`` after which the answer is useless.
        caller: Whose share of threads, memory and devices the request uses.
    """

    image: bytes | RawImage
    model: str = ""
    targets: tuple[Target, ...] | TopK = TopK()
    layers: tuple[str, ...] = ()
    layer_fusion: LayerFusion = LayerFusion.NONE
    method: Method = Method.GRAD_CAM
    score_type: ScoreType = ScoreType.LOGIT
    pass_count: int | None = None
    smooth_grad: SmoothGrad | None = None
    resize_mode: ResizeMode = ResizeMode.STRETCH
    forms: tuple[HeatmapForm, ...] = (HeatmapForm(),)
    prediction_count: int = 5
    model_version: str = ""
    priority: int = 1
    deadline: float | None = None
    caller: str = ""


class Prediction(NamedTuple):
    """One class: its index, name, softmax probability and logit."""

    index: int  # type: ignore[assignment]  # instead of the method of tuples
    name: str
    probability: float
    logit: float


class Heatmap(NamedTuple):
    """One form of a heat map: ``data`` is an image file or a float32 array (height, width)."""

    format: HeatmapFormat
    height: int
    width: int
    data: bytes


@dataclass(frozen=True)
class Explanation:
    """The explanation of one class at one layer.

    Attributes:
        index: Index of the class.
        name: Name of the class.
        score: The explained score: a logit or probability, or a difference of several.
        layer: The explained layer, or the fused layers joined by " + ".
        method: The method.
        raw_min: Minimum of the map before its final ReLU, at layer resolution.
        raw_max: Maximum of the map before its final ReLU, at layer resolution.
        degenerate: Whether no value is positive, or a value is not finite.
        heatmaps: One heat map for each form, in the order of the forms.
        score_type: The type of the score.
        saturated: Whether the score is a probability so near to 1 or 0 that its gradient is lost.
        against: Index of the class that the request contrasts it with.
        against_name: Name of that class.
        extent: The part of the model's input that raw maps cover; None is the whole input.
        image_extent: The part of the image that raw maps cover.
    """

    index: int
    name: str
    score: float
    layer: str
    method: Method
    raw_min: float
    raw_max: float
    degenerate: bool
    heatmaps: tuple[Heatmap, ...]
    score_type: ScoreType = ScoreType.LOGIT
    saturated: bool = False
    against: int | None = None
    against_name: str = ""
    extent: Extent | None = None
    image_extent: Extent | None = None


@dataclass
class Stats:
    """The time of each stage in microseconds, the size of the batch, and the number of passes."""

    decode_us: int = 0
    queue_us: int = 0
    compute_us: int = 0
    render_us: int = 0
    batch_size: int = 0
    padded_batch_size: int = 0
    pass_count: int = 1
    dispatch_reason: str = ""
    compile_us: int = 0


@dataclass
class Progress:
    """The completed passes of a method of many passes; ``total`` is their upper bound."""

    completed: int = 0
    total: int = 0


async def watch(progress: Progress) -> AsyncIterator[None]:
    """Yields after progress, at most five times a second, until it is closed."""
    seen = progress.completed
    while True:
        await asyncio.sleep(_WATCH_INTERVAL_S)
        if progress.completed != seen:
            seen = progress.completed
            yield


@dataclass(frozen=True)
class ExplainedImage:
    """The answer for one image; logits and probabilities are float32 (classes,).

    ``preprocessing`` says how pixels were scaled for the model, and ``preprocessing_declared``
    whether it was declared, or is only the default.
    """

    model: str
    image_height: int
    image_width: int
    predictions: tuple[Prediction, ...]
    explanations: tuple[Explanation, ...]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    stats: Stats = field(default_factory=Stats)
    model_version: str = ""
    preprocessing: str = ""
    preprocessing_declared: bool = False
