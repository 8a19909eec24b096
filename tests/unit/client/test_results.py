"""Results from answers."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import ImageExplanation, ModelInfo, Prediction, ServingStats
from gradcam_client.extents import Extent
from gradcam_client.model_info import ClassInfo, LayerInfo
from gradcam_client.results import Explanation


@pytest.fixture
def result(heatmap_response: pb.ExplainImageResponse) -> ImageExplanation:
    return ImageExplanation.from_response(heatmap_response)


def only(result: ImageExplanation, *formats: str) -> Explanation:
    """The explanation of a request for only these forms."""
    explanation = result.explanations[0]
    held = tuple(one for one in explanation.heatmaps if one.format in formats)
    return dataclasses.replace(explanation, heatmaps=held)


def test_every_field_is_read(result: ImageExplanation) -> None:
    """Nothing of an answer is lost on its way into the result."""
    assert (result.model, result.image_height, result.image_width) == ("resnet50", 20, 30)
    assert (result.preprocessing, result.preprocessing_declared) == ("caffe", True)
    assert result.top == Prediction(281, "tabby", 0.75, 9.5)
    assert len(result.predictions) == 2
    assert result.stats == ServingStats(1, 2, 3, 4, 5, 8, compile_us=6)
    (explanation,) = result.explanations
    assert (explanation.index, explanation.name, explanation.score) == (281, "tabby", 9.5)
    assert (explanation.layer, explanation.method) == ("conv5_block3_out", "gradcam")
    assert (explanation.raw_min, explanation.raw_max, explanation.degenerate) == (-0.5, 2.0, False)
    forms = [(one.format, one.normalization, one.interpolation) for one in explanation.heatmaps]
    assert forms == [
        ("raw", "none", "none"),
        ("gray-png", "max", "bilinear"),
        ("overlay-jpeg", "max", "bilinear"),
        ("overlay-png", "max", "bilinear"),
    ]


def test_logits_are_an_array_or_none(result: ImageExplanation) -> None:
    """Logits are float32 (classes,); None if the request did not ask for them."""
    assert result.logits is not None
    assert result.logits.dtype == np.float32
    np.testing.assert_array_equal(result.logits, [0.5, 1.5])
    assert ImageExplanation.from_response(pb.ExplainImageResponse()).logits is None


def test_values_of_a_newer_server_are_unknown() -> None:
    """A number that this client does not know is no reason to fail."""
    heatmap = pb.Heatmap(format=99, normalization=99, interpolation=99)  # type: ignore[arg-type]
    explanation = pb.Explanation(method=99, heatmaps=[heatmap])  # type: ignore[arg-type]
    read = Explanation.from_proto(explanation)
    assert (read.method, read.heatmaps[0].format) == ("unknown", "unknown")


def test_a_raw_map_says_what_it_covers(result: ImageExplanation) -> None:
    """The extent is read; without one a map covers the whole input."""
    assert result.explanations[0].extent is None
    read = Explanation.from_proto(pb.Explanation(extent=pb.Extent(left_px=-4, width_px=8.5)))
    assert read.extent == Extent(0, -4, 0, 8.5)


def test_the_raw_heat_map_is_an_array(result: ImageExplanation) -> None:
    """The heat map is float32 (h, w) at layer resolution, and cannot be written to."""
    heatmap = result.explanations[0].heatmap
    assert heatmap.dtype == np.float32
    np.testing.assert_array_equal(heatmap, [[1, 1, 1], [1, 1, 2]])
    assert not heatmap.flags.writeable


def test_an_image_form_is_no_array(result: ImageExplanation) -> None:
    """Reading a PNG as an array names the form to request instead."""
    with pytest.raises(ValueError, match=r"gray-png is an image file.*Raw\(\)"):
        _ = result.explanations[0].heatmaps[1].array


def test_a_missing_form_says_how_to_get_it(result: ImageExplanation) -> None:
    """The error for a missing form names the option that requests it."""
    with pytest.raises(ValueError, match=r"heatmaps=\[Raw\(\)\]; this result holds gray-png$"):
        _ = only(result, "gray-png").heatmap
    with pytest.raises(ValueError, match=r"OverlayJpeg\(\).*OverlayPng\(\).*holds raw$"):
        _ = only(result, "raw").overlay
    with pytest.raises(ValueError, match="holds no heat map$"):
        _ = only(result).heatmap


def test_the_overlay_is_whichever_was_asked_for(result: ImageExplanation) -> None:
    """An overlay is found in either format."""
    assert only(result, "raw", "overlay-png").overlay == b"overlay png"
    assert only(result, "overlay-jpeg").overlay == b"overlay jpeg"


@pytest.mark.parametrize(
    ("name", "formats", "content"),
    [
        ("out.jpg", ("raw", "overlay-jpeg"), b"overlay jpeg"),
        ("out.JPEG", ("overlay-jpeg",), b"overlay jpeg"),
        ("out.png", ("gray-png", "overlay-png"), b"overlay png"),
        ("out.png", ("gray-png",), b"grey png"),
    ],
)
def test_the_suffix_chooses_the_form(
    result: ImageExplanation,
    tmp_path: Path,
    name: str,
    formats: tuple[str, ...],
    content: bytes,
) -> None:
    """A file name decides which form is written, an overlay before a grey map."""
    only(result, *formats).save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


def test_arrays_are_saved_for_numpy(result: ImageExplanation, tmp_path: Path) -> None:
    """A .npy file holds the raw heat map."""
    result.save(tmp_path / "out.npy")
    saved = np.load(io.BytesIO((tmp_path / "out.npy").read_bytes()))
    np.testing.assert_array_equal(saved, result.explanations[0].heatmap)


def test_a_form_that_is_not_there_is_not_saved(result: ImageExplanation, tmp_path: Path) -> None:
    """Saving a missing form names the option that requests it, and writes nothing."""
    with pytest.raises(ValueError, match=r"for \.jpg.*OverlayJpeg\(\).*holds raw$"):
        only(result, "raw").save(tmp_path / "out.jpg")
    with pytest.raises(ValueError, match=r"out\.gif must end in \.jpg, \.jpeg, \.png, \.npy"):
        result.save(tmp_path / "out.gif")
    with pytest.raises(ValueError, match=r"overlay-jpeg cannot be saved as out\.png"):
        only(result, "overlay-jpeg").heatmaps[0].save(tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_an_answer_may_hold_nothing() -> None:
    """Without predictions or explanations the errors of the shortcuts say why."""
    empty = ImageExplanation.from_response(pb.ExplainImageResponse())
    with pytest.raises(ValueError, match="predictions=0"):
        _ = empty.top
    with pytest.raises(ValueError, match="top_k"):
        empty.save("out.jpg")


def test_a_model_is_read() -> None:
    """Nothing of a model's description is lost."""
    model = pb.Model(
        name="resnet50",
        weights="imagenet",
        random_weights=True,
        input_height_px=224,
        input_width_px=225,
        class_count=1,
        default_layer="last",
        compiled_layers=["last"],
        batch_sizes=[1, 4],
        methods=[pb.METHOD_GRAD_CAM],
        max_target_count=8,
        compilation_count=3,
        preprocessing="torch",
        preprocessing_declared=True,
        classes=[pb.ModelClass(name="tabby", aliases=["n02123045"])],
        layers=[
            pb.Layer(name="last", type="Conv2D", output_shape=[-1, 7, 7], explainable=True),
            pb.Layer(
                name="crop", extent=pb.Extent(top_px=-4, left_px=2, height_px=8, width_px=0.5)
            ),
        ],
    )
    assert ModelInfo.from_proto(model) == ModelInfo(
        name="resnet50",
        weights="imagenet",
        random_weights=True,
        input_height=224,
        input_width=225,
        class_count=1,
        default_layer="last",
        compiled_layers=("last",),
        batch_sizes=(1, 4),
        methods=("gradcam",),
        max_target_count=8,
        compilation_count=3,
        preprocessing="torch",
        preprocessing_declared=True,
        classes=(ClassInfo("tabby", ("n02123045",)),),
        layers=(
            LayerInfo("last", "Conv2D", (-1, 7, 7), True),
            LayerInfo("crop", "", (), False, Extent(-4, 2, 8, 0.5)),
        ),
    )
