"""What is asked of the pipeline and what it answers, free of protobuf and gRPC."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.layers import Extent

_WATCH_INTERVAL_S = 0.2


class Method(StrEnum):
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


class ScoreType(StrEnum):
    """What is explained of a class."""

    LOGIT = "logit"
    PROBABILITY = "probability"


class LayerFusion(StrEnum):
    """What becomes of the maps of several layers."""

    NONE = "none"
    LAYER_CAM = "layercam"


class ResizeMode(StrEnum):
    """How an image is brought to the model's input size."""

    STRETCH = "stretch"
    CENTER_CROP = "center-crop"
    LETTERBOX = "letterbox"


class HeatmapFormat(StrEnum):
    """The form in which a heat map is returned."""

    RAW_FLOAT32 = "raw-float32"
    IMAGE_FLOAT32 = "image-float32"
    GRAY_PNG = "gray-png"
    OVERLAY_JPEG = "overlay-jpeg"
    OVERLAY_PNG = "overlay-png"


class Colormap(StrEnum):
    """Colours from cold to hot."""

    JET = "jet"
    TURBO = "turbo"
    VIRIDIS = "viridis"
    INFERNO = "inferno"


@dataclass(frozen=True)
class HeatmapForm:
    """One wanted form of every heat map.

    Attributes:
        format: Array, grey image or overlay.
        alpha: Weight of the colours over the image, 0 to 1; overlays only.
        colormap: Overlays only.
        jpeg_quality: 1 to 100; JPEG only.
    """

    format: HeatmapFormat = HeatmapFormat.RAW_FLOAT32
    alpha: float = 0.4
    colormap: Colormap = Colormap.JET
    jpeg_quality: int = 90


@dataclass(frozen=True)
class RawImage:
    """Uncompressed pixels: uint8 RGB, row-major, ``height * width * 3`` bytes."""

    data: bytes
    height: int
    width: int


@dataclass(frozen=True)
class Target:
    """A class to explain, by index or name, alone or against another one."""

    name: int | str
    against: int | str | None = None


@dataclass(frozen=True)
class SmoothGrad:
    """The mean over noisy copies of an image, for any one-pass method.

    Attributes:
        sample_count: Copies.
        noise_level: Standard deviation of the noise over the range of the pixels.
    """

    sample_count: int = 16
    noise_level: float = 0.15


@dataclass(frozen=True)
class TopK:
    """Explain the ``k`` classes of highest score; 0 is none."""

    k: int = 1


@dataclass(frozen=True)
class ExplainRequest:
    """One image and what is asked of it.

    Attributes:
        image: An encoded file, or pixels.
        model: Name of the model; empty means the first.
        targets: The classes to explain, or the top k.
        layers: Names of the layers; none means the model's default.
        layer_fusion: Whether the maps of several layers become one.
        method: The explanation method.
        score_type: What is explained of each class.
        pass_count: Channels of Score-CAM, or steps of Integrated Gradients; None is
            the method's default.
        smooth_grad: The mean over noisy copies, or None.
        resize_mode: How the image is brought to the model's input size.
        forms: The forms in which each heat map is wanted.
        prediction_count: How many predictions to return.
        model_version: Version of the model; empty means its first.
        priority: 1 goes first.
        deadline: Time of ``perf_counter`` at which the answer is of no more use.
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


@dataclass(frozen=True)
class Prediction:
    """One class: its index, name, softmax probability and logit."""

    index: int
    name: str
    probability: float
    logit: float


@dataclass(frozen=True)
class Heatmap:
    """One form of a heat map: ``data`` is an image file or a float32 array (height, width)."""

    format: HeatmapFormat
    height: int
    width: int
    data: bytes


@dataclass(frozen=True)
class Explanation:
    """Where the evidence for one class lies.

    Attributes:
        index: The class.
        name: Its name.
        score: What was explained: its logit or probability, or a difference of two.
        layer: The explained layer, or fused ones joined by " + ".
        method: The method.
        raw_min: Least value of the map before its final ReLU, at layer resolution.
        raw_max: Greatest value of the same.
        degenerate: Whether no value is positive, or one is not finite.
        heatmaps: One for each form, in their order.
        score_type: What the score is.
        saturated: Whether it is a probability too near to 1 or 0 to have a gradient.
        against: The class that it was contrasted with.
        against_name: Its name.
        extent: The part of the model's input that raw maps cover; None is the whole input.
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


@dataclass
class Stats:
    """Where the time went, in microseconds, the batch that held the image, and its passes."""

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
    """How far a method of many passes is; ``total`` is the most that it will take."""

    completed: int = 0
    total: int = 0


async def watch(progress: Progress) -> AsyncIterator[None]:
    """Yields, at most a few times in a second, whenever there is progress. Ends by being closed."""
    seen = progress.completed
    while True:
        await asyncio.sleep(_WATCH_INTERVAL_S)
        if progress.completed != seen:
            seen = progress.completed
            yield


@dataclass(frozen=True)
class ExplainedImage:
    """The answer for one image; logits and probabilities are float32 (classes,).

    ``preprocessing`` is how its pixels were scaled for the model, and ``preprocessing_declared``
    whether someone said so.
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
