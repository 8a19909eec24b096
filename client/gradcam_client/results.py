"""Explanations: protobuf answers as frozen dataclasses, which draw and save themselves."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import drawing
from gradcam_client.extents import Extent
from gradcam_client.html_view import MapView, ResultView, data_uri, to_html
from gradcam_client.image_urls import ImageUrl
from gradcam_client.requests import (
    HEATMAP_FORMATS,
    METHOD_NAMES,
    SCORE_TYPES,
    ColormapName,
    ImageInput,
)

_UNKNOWN = "unknown"  # for values of newer servers
_FORMATS = {number: name for name, number in HEATMAP_FORMATS.items()}
_SCORE_TYPES = {number: name for name, number in SCORE_TYPES.items()}
_NORMALIZATIONS = {pb.NORMALIZATION_NONE: "none", pb.NORMALIZATION_MAX: "max"}
_INTERPOLATIONS = {pb.INTERPOLATION_NONE: "none", pb.INTERPOLATION_BILINEAR: "bilinear"}
_DISPATCH_REASONS = {
    pb.DISPATCH_REASON_FULL: "full",
    pb.DISPATCH_REASON_DELAY: "delay",
    pb.DISPATCH_REASON_IDLE: "idle",
}

_ARRAYS = ("raw", "image")
_OVERLAYS = ("overlay-jpeg", "overlay-png")
# The forms of heat maps that fit the suffix of a file, best first.
_FORMS_BY_SUFFIX: Mapping[str, tuple[str, ...]] = {
    ".jpg": ("overlay-jpeg",),
    ".jpeg": ("overlay-jpeg",),
    ".png": ("overlay-png", "gray-png"),
    ".npy": _ARRAYS,
}
_MAKERS = {
    "raw": "Raw()",
    "image": "ImageArray()",
    "gray-png": "GrayPng()",
    "overlay-jpeg": "OverlayJpeg()",
    "overlay-png": "OverlayPng()",
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """One predicted class.

    Attributes:
        index: The index of the class in the model's output.
        name: The name of the class; empty if the model has no labels.
        probability: The model's probability of the class, 0 to 1.
        logit: The logit of the class.
    """

    index: int
    name: str
    probability: float
    logit: float


@dataclass(frozen=True, slots=True)
class Heatmap:
    """One form of a heat map.

    Attributes:
        format: "raw", "image", "gray-png", "overlay-jpeg" or "overlay-png".
        height: Rows.
        width: Columns.
        normalization: "none", or "max": divided by the maximum, 0 to 1.
        interpolation: How the map was enlarged: "none" or "bilinear".
        data: Little-endian float32, row-major ("raw" and "image"), or an image file.
    """

    format: str
    height: int
    width: int
    normalization: str
    interpolation: str
    data: bytes = field(repr=False)

    @property
    def array(self) -> NDArray[np.float32]:
        """The values: float32 (height, width), read-only.

        Raises:
            ValueError: The form is an image file.
        """
        if self.format not in _ARRAYS:
            raise ValueError(
                f"a heat map of form {self.format} is an image file, not an array: "
                "use .data, or ask for heatmaps=[Raw()] or [ImageArray()]"
            )
        values = np.frombuffer(self.data, "<f4").reshape(self.height, self.width)
        return values.astype(np.float32, copy=False)  # the machine may be big-endian

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the heat map to a file: .npy for arrays, else an image file.

        Raises:
            ValueError: The suffix does not fit the form.
            OSError: The file cannot be written.
        """
        path = Path(path)
        if self.format not in _forms_for(path):
            raise ValueError(f"a heat map of form {self.format} cannot be saved as {path.name}")
        if self.format in _ARRAYS:
            with path.open("wb") as file:
                np.save(file, self.array)
        else:
            path.write_bytes(self.data)

    @classmethod
    def from_proto(cls, heatmap: pb.Heatmap) -> Self:
        """Reads the protobuf message."""
        return cls(
            format=_FORMATS.get(heatmap.format, _UNKNOWN),
            height=heatmap.height_px,
            width=heatmap.width_px,
            normalization=_NORMALIZATIONS.get(heatmap.normalization, _UNKNOWN),
            interpolation=_INTERPOLATIONS.get(heatmap.interpolation, _UNKNOWN),
            data=heatmap.data,
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """The heat maps and the score of one class.

    Attributes:
        index: The index of the class in the model's output.
        name: The name of the class; empty if the model has no labels.
        score: The score that was explained; of a contrast, the difference of two scores.
        layer: The layer whose activation was explained; fused layers joined by " + ".
        method: "gradcam", or another key of ``METHODS``.
        raw_min: Minimum of the map before the final ReLU, at layer resolution.
        raw_max: Maximum of the map before the final ReLU, at layer resolution.
        degenerate: The map has no positive value, or a value that is not finite: all heat maps
            are zero.
        heatmaps: The heat maps, in the order of the forms in the request.
        score_type: "logit" or "probability".
        saturated: The score is a probability so close to 1 or 0 that its gradient is
            lost in rounding: explain the logit instead.
        against: The index of the class that the class was contrasted with, or None.
        against_name: The name of that class.
        extent: The part of the model's input that the raw heat map covers, if the model crops or
            pads images itself; None is the whole input. It places maps of the image's size.
        image_extent: The part of the image (after EXIF orientation) that the raw heat map covers,
            in pixels of the image; there is no heat outside of it.
    """

    index: int
    name: str
    score: float
    layer: str
    method: str
    raw_min: float
    raw_max: float
    degenerate: bool
    heatmaps: tuple[Heatmap, ...]
    score_type: str = "logit"
    saturated: bool = False
    against: int | None = None
    against_name: str = ""
    extent: Extent | None = None
    image_extent: Extent | None = None

    @property
    def heatmap(self) -> NDArray[np.float32]:
        """The raw heat map: float32 (h, w) at the layer's resolution, >= 0, read-only.

        Raises:
            ValueError: The request did not ask for it.
        """
        return self._first(("raw",), "the raw heat map").array

    @property
    def overlay(self) -> bytes:
        """The first overlay: a JPEG or PNG file.

        Raises:
            ValueError: The request did not ask for an overlay.
        """
        return self._first(_OVERLAYS, "an overlay").data

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the form that fits a file name.

        Args:
            path: .jpg or .jpeg: the JPEG overlay. .png: the PNG overlay, else the grey
                PNG. .npy: the raw array, else the array at the image's resolution.

        Raises:
            ValueError: The suffix is another, or the request did not ask for such a form.
            OSError: The file cannot be written.
        """
        path = Path(path)
        self._first(_forms_for(path), path.suffix).save(path)

    def on_image(self, height: int, width: int, scale: float = 1) -> NDArray[np.float32]:
        """Places the map on the image, divided by its maximum, as ``ImageArray`` does.

        Args:
            height: The image's height, in pixels.
            width: The image's width, in pixels.
            scale: The size of the result over that of the image, for a small picture.

        Returns:
            float32 (height, width), each times ``scale``, 0 to 1.

        Raises:
            ValueError: The request asked for no array, or the server does not say which part of
                the image the raw map covers.
        """
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        for heatmap in self.heatmaps:
            if heatmap.format == "image":
                whole = Extent(0, 0, rows, columns)
                return drawing.enlarge(heatmap.array, whole, rows, columns)
        raw = self._first(("raw",), "a picture").array
        covered = self.image_extent
        if covered is None:
            raise ValueError(
                "the server does not say which part of the image the raw map covers; explain with "
                "heatmaps=[OverlayJpeg()] or heatmaps=[ImageArray()]"
            )
        on_picture = covered.scaled(rows / height, columns / width)
        highest = np.float32(1 if self.degenerate else self.raw_max)
        return drawing.enlarge(raw / highest, on_picture, rows, columns)

    def _holds(self, forms: tuple[str, ...]) -> bool:
        return any(heatmap.format in forms for heatmap in self.heatmaps)

    def _first(self, forms: tuple[str, ...], wanted: str) -> Heatmap:
        for form in forms:
            for heatmap in self.heatmaps:
                if heatmap.format == form:
                    return heatmap
        held = ", ".join(heatmap.format for heatmap in self.heatmaps) or "no heat map"
        options = " or ".join(f"heatmaps=[{_MAKERS[form]}]" for form in forms)
        raise ValueError(f"for {wanted}, explain with {options}; this result holds {held}")

    @classmethod
    def from_proto(cls, explanation: pb.Explanation) -> Self:
        """Reads the protobuf message."""
        return cls(
            index=explanation.class_index,
            name=explanation.class_name,
            score=explanation.score,
            layer=explanation.layer,
            method=METHOD_NAMES.get(explanation.method, _UNKNOWN),
            raw_min=explanation.raw_min,
            raw_max=explanation.raw_max,
            degenerate=explanation.degenerate,
            heatmaps=tuple(map(Heatmap.from_proto, explanation.heatmaps)),
            score_type=_SCORE_TYPES.get(explanation.score_type, _UNKNOWN),
            saturated=explanation.saturated,
            against=(
                explanation.against_class_index
                if explanation.HasField("against_class_index")
                else None
            ),
            against_name=explanation.against_class_name,
            extent=Extent.of_field(explanation, "extent"),
            image_extent=Extent.of_field(explanation, "image_extent"),
        )


@dataclass(frozen=True, slots=True)
class ServingStats:
    """The times of one answer in the server, and its batch.

    Attributes:
        decode_us: Time to decode and resize the image, in microseconds.
        queue_us: Time in the queue, without compiling, in microseconds.
        compute_us: Time of the batch on the device, copies included, in microseconds.
        render_us: Time to enlarge, colour and encode the heat maps, in microseconds.
        batch_size: Number of images in the batch.
        padded_batch_size: The compiled batch size that ran.
        pass_count: Number of forward passes.
        dispatch_reason: Why the batch was sent to the device: "full", "delay" (its oldest image
            had waited for the maximum delay), "idle" (the device was free) or "unknown".
        compile_us: Time until the graphs of this answer were compiled, in microseconds; 0
            unless this was their first use.
    """

    decode_us: int
    queue_us: int
    compute_us: int
    render_us: int
    batch_size: int
    padded_batch_size: int
    pass_count: int = 1
    dispatch_reason: str = "unknown"
    compile_us: int = 0


@dataclass(frozen=True, slots=True)
class ImageExplanation:
    """Predictions and explanations of one image.

    Attributes:
        model: The model that answered.
        image_height: The image's height after EXIF orientation, in pixels.
        image_width: The image's width after EXIF orientation, in pixels.
        predictions: The classes of highest probability, best first.
        explanations: One for each class, in the order of the request, or best first.
        logits: float32 (classes,), or None if the request did not ask for logits.
        stats: Times and batch of the answer.
        model_version: The model's version; empty if it has none.
        preprocessing: How pixels were scaled for the model: "none" (RGB from 0 to 255),
            "caffe", "torch", "tf" or "lite"; empty if the server does not say.
        preprocessing_declared: Whether the preprocessing was declared, or the model is built in;
            else it is a default, which may differ from the preprocessing in training.
        image: The image as it was given to ``explain``, for ``draw``, ``save`` and notebooks; None
            if it is not known. A path or a link is read again when it is drawn.
    """

    model: str
    image_height: int
    image_width: int
    predictions: tuple[Prediction, ...]
    explanations: tuple[Explanation, ...]
    logits: NDArray[np.float32] | None = field(compare=False, repr=False)
    stats: ServingStats
    model_version: str = ""
    preprocessing: str = ""
    preprocessing_declared: bool = False
    image: ImageInput | None = field(default=None, compare=False, repr=False)

    @property
    def top(self) -> Prediction:
        """The best prediction.

        Raises:
            ValueError: The request asked for no predictions.
        """
        if not self.predictions:
            raise ValueError("there are no predictions: the request had predictions=0")
        return self.predictions[0]

    def draw(
        self, number: int = 0, *, alpha: float = 0.4, colormap: ColormapName = "jet"
    ) -> NDArray[np.uint8]:
        """Draws a heat map over the image, as the server draws its overlays.

        Args:
            number: The position of the explanation in ``explanations``.
            alpha: The weight of the colours over the image, 0 to 1.
            colormap: The colours.

        Returns:
            uint8 RGB (image_height, image_width, 3).

        Raises:
            ImportError: The image is a file, and Pillow, which reads it, is not installed.
            OSError: The file cannot be read any more.
            ValueError: The image or an array of the heat map is not there, or the file has changed.
        """
        on_image = self._explanation(number).on_image(self.image_height, self.image_width)
        colors = drawing.colored(on_image, colormap)
        return drawing.blended(self._pixels(), colors, alpha)

    def save(self, path: str | os.PathLike[str], number: int = 0) -> None:
        """Writes the form of an explanation that fits a file name, or else a drawing.

        Args:
            path: As in ``Explanation.save``; without such a form, .jpg, .jpeg and .png are drawn
                here from the image and the raw map.
            number: The position of the explanation in ``explanations``.

        Raises:
            ValueError: There is no explanation, or as in ``Explanation.save`` and ``draw``.
            ImportError: Pillow is not installed, which reads image files and writes JPEG files.
            OSError: The file cannot be written, or the image cannot be read.
        """
        explanation, path = self._explanation(number), Path(path)
        forms = _forms_for(path)
        if forms == _ARRAYS or explanation._holds(forms):
            explanation.save(path)
        else:
            drawing.write_image(self.draw(number), path)

    def _explanation(self, number: int) -> Explanation:
        if not self.explanations:
            raise ValueError("there is no explanation: top_k was 0")
        return self.explanations[number]

    def _pixels(self) -> NDArray[np.uint8]:
        if self.image is None:
            raise ValueError("this result does not know its image, so there is nothing to draw on")
        pixels = drawing.pixels_of(self.image)
        if pixels.shape[:2] != (self.image_height, self.image_width):
            raise ValueError(
                f"the image has {pixels.shape[1]} x {pixels.shape[0]} pixels and had "
                f"{self.image_width} x {self.image_height}: it has changed since it was explained"
            )
        return pixels

    def _repr_html_(self) -> str:
        """Shows the image with its heat maps and classes in a notebook."""
        return to_html([self.view()])

    def view(self) -> ResultView:
        """Returns what notebooks show. It never raises: what is missing is left out."""
        name = str(self.image) if isinstance(self.image, str | os.PathLike | ImageUrl) else ""
        return ResultView(
            title=" · ".join(filter(None, (name, self.model))),
            height=self.image_height,
            width=self.image_width,
            image=drawing.picture_uri(self.image),
            classes=[(best.name or str(best.index), best.probability) for best in self.predictions],
            maps=[_map_view(one, self.image_height, self.image_width) for one in self.explanations],
        )

    @classmethod
    def from_response(
        cls, response: pb.ExplainImageResponse, image: ImageInput | None = None
    ) -> Self:
        """Reads the protobuf message.

        Args:
            response: The message.
            image: The image as it was given.
        """
        stats = response.stats
        return cls(
            image=image,
            model=response.model,
            model_version=response.model_version,
            preprocessing=response.preprocessing,
            preprocessing_declared=response.preprocessing_declared,
            image_height=response.image_height_px,
            image_width=response.image_width_px,
            predictions=tuple(
                Prediction(best.class_index, best.class_name, best.probability, best.logit)
                for best in response.predictions
            ),
            explanations=tuple(map(Explanation.from_proto, response.explanations)),
            logits=np.array(response.logits, np.float32) if response.logits else None,
            stats=ServingStats(
                decode_us=stats.decode_us,
                queue_us=stats.queue_us,
                compute_us=stats.compute_us,
                render_us=stats.render_us,
                batch_size=stats.batch_size,
                padded_batch_size=stats.padded_batch_size,
                pass_count=stats.pass_count,
                dispatch_reason=_DISPATCH_REASONS.get(stats.dispatch_reason, _UNKNOWN),
                compile_us=stats.compile_us,
            ),
        )


def _map_view(explanation: Explanation, height: int, width: int) -> MapView:
    """Returns the map in colours at the size of a screen, or the server's overlay."""
    against = explanation.against_name or explanation.against
    rather = "" if against is None else f" rather than {against}"
    notes = " (the map is all zero: no evidence for this class)" if explanation.degenerate else ""
    caption = (
        f"{explanation.name or explanation.index}{rather}: {explanation.score_type} "
        f"{explanation.score:.3f}, {explanation.method} at {explanation.layer}{notes}"
    )
    heat = overlay = None
    if explanation._holds(_OVERLAYS):
        overlay = data_uri(explanation.overlay)
    try:
        on_image = explanation.on_image(height, width, drawing.screen_scale(height, width))
        colors = drawing.colored(on_image, "jet")
        heat = data_uri(drawing.png(colors))
    except ValueError:
        pass  # there is no array, or no place for it
    return MapView(caption, heat, overlay)


def _forms_for(path: Path) -> tuple[str, ...]:
    forms = _FORMS_BY_SUFFIX.get(path.suffix.lower())
    if forms is None:
        raise ValueError(f"{path.name} must end in {', '.join(_FORMS_BY_SUFFIX)}")
    return forms
