"""Conversion between the messages of gradcam.v1 and the domain's types."""

import numpy as np
import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.domain.catalog import Catalog, ServedModel
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.layers import Extent
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import (
    Colormap,
    ExplainedImage,
    Explanation,
    Heatmap,
    HeatmapForm,
    HeatmapFormat,
    Method,
    Prediction,
    RawImage,
    ResizeMode,
    Stats,
    Target,
    TopK,
)
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.gradcam_v1.convert import to_model, to_request, to_response


def test_an_image_alone_asks_for_the_defaults() -> None:
    """The defaults: Grad-CAM of the top class at the default layer, raw, five predictions."""
    request = to_request(pb.ExplainImageRequest(encoded_image=b"x"))
    assert request.image == b"x"
    assert (request.model, request.layers, request.targets) == ("", (), TopK(1))
    assert (request.method, request.resize_mode) == (Method.GRAD_CAM, ResizeMode.STRETCH)
    assert request.forms == (HeatmapForm(HeatmapFormat.RAW_FLOAT32),)
    assert request.prediction_count == 5


def test_every_field_is_read() -> None:
    """No field that a client sets is lost, even if its value is zero."""
    request = to_request(
        pb.ExplainImageRequest(
            model="m",
            raw_image=pb.RawImage(data=b"abc", height_px=1, width_px=1),
            targets=[
                pb.Target(class_index=0),
                pb.Target(class_name="tabby", against_class_index=0),
            ],
            layers=["l", "m"],
            method=pb.METHOD_GRAD_CAM,
            resize_mode=pb.RESIZE_MODE_LETTERBOX,
            heatmaps=[
                pb.HeatmapRequest(
                    format=pb.HEATMAP_FORMAT_OVERLAY_JPEG,
                    alpha=0,
                    colormap=pb.COLORMAP_INFERNO,
                    jpeg_quality=7,
                )
            ],
            prediction_count=0,
        )
    )
    assert request.image == RawImage(b"abc", 1, 1)
    assert request.targets == (Target(0), Target("tabby", 0))
    assert (request.model, request.layers) == ("m", ("l", "m"))
    assert request.resize_mode is ResizeMode.LETTERBOX
    assert request.forms == (HeatmapForm(HeatmapFormat.OVERLAY_JPEG, 0, Colormap.INFERNO, 7),)
    assert request.prediction_count == 0
    asked = to_request(pb.ExplainImageRequest(encoded_image=b"x", top_k=0))
    assert asked.targets == TopK(0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, "image"),
        ({"encoded_image": b"x", "targets": [pb.Target()]}, "targets"),
        ({"encoded_image": b"x", "targets": [pb.Target(class_index=1)], "top_k": 1}, "top_k"),
        ({"encoded_image": b"x", "method": 99}, "method"),
        ({"encoded_image": b"x", "resize_mode": 99}, "resize_mode"),
        ({"encoded_image": b"x", "heatmaps": [pb.HeatmapRequest()]}, "heatmaps.format"),
        ({"encoded_image": b"x", "prediction_count": -1}, "prediction_count"),
    ],
)
def test_what_makes_no_sense_is_refused_by_field(change: dict[str, object], field: str) -> None:
    """The error names the field of the proto file."""
    with pytest.raises(InvalidRequestError) as caught:
        to_request(pb.ExplainImageRequest(**change))  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("declared", [False, True])
def test_a_model_says_how_its_pixels_are_scaled(declared: bool, full: bool) -> None:
    """Also in the list of models: a default may differ from the model's training."""
    labels = ClassLabels([ClassLabel("one")])
    preprocessing = Preprocessing.CAFFE if declared else Preprocessing.NONE
    served = ServedModel(
        *("m", "", labels, (), "top", (8, 8), preprocessing, "file"),
        preprocessing_declared=declared,
    )
    message = to_model(served, Catalog((served,), (), (1,), 1), 0, full=full)
    assert message.preprocessing == ("caffe" if declared else "none")
    assert message.preprocessing_declared is declared


@pytest.mark.parametrize("enum", [pb.HeatmapFormat, pb.Colormap, pb.ResizeMode, pb.Method])
def test_every_value_of_the_proto_is_known(enum: type) -> None:
    """A value added to the proto file must be added to the server."""
    for number in enum.values():  # type: ignore[attr-defined]
        if enum is pb.HeatmapFormat and number == 0:
            continue
        form = pb.HeatmapRequest(format=pb.HEATMAP_FORMAT_RAW_FLOAT32)
        request = pb.ExplainImageRequest(encoded_image=b"x", heatmaps=[form])
        if enum is pb.HeatmapFormat:
            request.heatmaps[0].format = number
        elif enum is pb.Colormap:
            request.heatmaps[0].colormap = number
        elif enum is pb.ResizeMode:
            request.resize_mode = number
        else:
            request.method = number
        to_request(request)


def test_answers_are_written_whole() -> None:
    """Each number arrives in its field."""
    heatmap = Heatmap(HeatmapFormat.GRAY_PNG, 3, 4, b"png")
    explained = ExplainedImage(
        model="m",
        image_height=3,
        image_width=4,
        predictions=(Prediction(1, "one", 0.5, 2.0),),
        explanations=(
            Explanation(1, "one", 2.0, "l", Method.GRAD_CAM, -1.0, 3.0, False, (heatmap,)),
        ),
        logits=np.array([0.0, 2.0], np.float32),
        probabilities=np.array([0.1, 0.9], np.float32),
        stats=Stats(1, 2, 3, 4, 5, 8, compile_us=6),
        preprocessing="tf",
        preprocessing_declared=True,
    )
    message = to_response(explained, include_logits=True)
    assert (message.model, message.image_height_px, message.image_width_px) == ("m", 3, 4)
    assert (message.preprocessing, message.preprocessing_declared) == ("tf", True)
    assert message.predictions[0].class_name == "one"
    (explanation,) = message.explanations
    assert (explanation.raw_min, explanation.raw_max, explanation.score) == (-1, 3, 2)
    assert explanation.heatmaps[0].normalization == pb.NORMALIZATION_MAX
    assert explanation.heatmaps[0].interpolation == pb.INTERPOLATION_BILINEAR
    assert list(message.logits) == [0, 2]
    stats = message.stats
    times = (stats.decode_us, stats.queue_us, stats.compute_us, stats.render_us)
    assert (*times, stats.batch_size, stats.padded_batch_size) == (1, 2, 3, 4, 5, 8)
    assert stats.compile_us == 6
    assert not to_response(explained, include_logits=False).logits
    assert not explanation.HasField("extent")
    part = explained.explanations[0]._replace(extent=Extent(-1, 2, 3, 4.5))
    explained = explained._replace(explanations=(part,))
    extent = to_response(explained, include_logits=False).explanations[0].extent
    assert (extent.top_px, extent.left_px, extent.height_px, extent.width_px) == (-1, 2, 3, 4.5)
    part = part._replace(extent=None, image_extent=Extent(0, 1.5, 7, 8))
    explained = explained._replace(explanations=(part,))
    explanation = to_response(explained, include_logits=False).explanations[0]
    assert explanation.image_extent == pb.Extent(left_px=1.5, height_px=7, width_px=8)
    assert not explanation.HasField("extent")
