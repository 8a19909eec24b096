"""Requests from options and pixels."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import (
    GrayPng,
    HeatmapForm,
    ImageArray,
    OverlayJpeg,
    OverlayPng,
    Raw,
    build_request,
)
from gradcam_client.requests import (
    COLORMAPS,
    HEATMAP_FORMATS,
    METHODS,
    RESIZE_MODES,
    build_template,
    with_image,
)

ANY_NAME: Any = "lime"  # a type checker knows the right names


def test_defaults_leave_the_choice_to_the_server() -> None:
    """Without options only fields without a server default are set."""
    request = build_request(b"jpeg")
    assert request == pb.ExplainImageRequest(
        encoded_image=b"jpeg",
        method=pb.METHOD_GRAD_CAM,
        resize_mode=pb.RESIZE_MODE_STRETCH,
        score_type=pb.SCORE_TYPE_LOGIT,
        layer_fusion=pb.LAYER_FUSION_NONE,
        priority=1,
        heatmaps=[
            pb.HeatmapRequest(format=pb.HEATMAP_FORMAT_RAW_FLOAT32, colormap=pb.COLORMAP_JET)
        ],
    )
    assert not request.HasField("top_k")
    assert not request.HasField("prediction_count")


def test_several_layers_and_contrasts_arrive() -> None:
    """A list of layers, and pairs of classes for "why a rather than b"."""
    request = build_request(b"jpeg", layers=["conv4", "conv5"], classes=[(281, "tiger cat"), 285])
    assert list(request.layers) == ["conv4", "conv5"]
    contrast, alone = request.targets
    assert (contrast.class_index, contrast.against_class_name) == (281, "tiger cat")
    assert alone.WhichOneof("against") is None


def test_every_option_arrives() -> None:
    """Each option sets its field, and an explicit 0 is not the default."""
    request = build_request(
        b"jpeg",
        model="resnet50",
        classes=[281, np.int64(285), "tabby"],  # type: ignore[list-item]
        top_k=0,
        layers="conv5",
        method="layercam",
        score="probability",
        fusion="layercam",
        resize="letterbox",
        heatmaps=[OverlayPng(alpha=0, colormap="viridis")],
        predictions=0,
        logits=True,
    )
    assert (request.model, list(request.layers)) == ("resnet50", ["conv5"])
    assert request.method == pb.METHOD_LAYER_CAM
    assert request.score_type == pb.SCORE_TYPE_PROBABILITY
    assert request.layer_fusion == pb.LAYER_FUSION_LAYER_CAM
    assert [target.class_index for target in request.targets[:2]] == [281, 285]
    assert request.targets[2].class_name == "tabby"
    assert request.HasField("top_k")
    assert request.HasField("prediction_count")
    assert request.resize_mode == pb.RESIZE_MODE_LETTERBOX
    assert request.heatmaps[0].HasField("alpha")
    assert request.heatmaps[0].colormap == pb.COLORMAP_VIRIDIS
    assert request.include_logits


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (Raw(), HeatmapForm("raw")),
        (ImageArray(), HeatmapForm("image")),
        (GrayPng(), HeatmapForm("gray-png")),
        (OverlayJpeg(), HeatmapForm("overlay-jpeg", 0.4, "jet", 90)),
        (OverlayPng(0.5, "turbo"), HeatmapForm("overlay-png", 0.5, "turbo")),
    ],
)
def test_each_form_has_a_maker(form: HeatmapForm, expected: HeatmapForm) -> None:
    """The functions return the forms with their options."""
    assert form == expected
    assert form.to_proto().format == HEATMAP_FORMATS[form.format]


@pytest.mark.parametrize(
    ("table", "enum"),
    [
        (METHODS, pb.Method),
        (RESIZE_MODES, pb.ResizeMode),
        (COLORMAPS, pb.Colormap),
        (HEATMAP_FORMATS, pb.HeatmapFormat),
    ],
)
def test_tables_name_every_value_of_the_api(table: dict[str, int], enum: Any) -> None:
    """A value that is added to the proto file cannot be forgotten here."""
    assert sorted(table.values()) == [number for number in enum.values() if number]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: build_request(b"", method=ANY_NAME), METHODS),
        (lambda: build_request(b"", resize=ANY_NAME), RESIZE_MODES),
        (lambda: OverlayJpeg(colormap=ANY_NAME), COLORMAPS),
        (lambda: HeatmapForm(ANY_NAME), HEATMAP_FORMATS),
    ],
)
def test_unknown_names_list_the_right_ones(make: Any, names: dict[str, int]) -> None:
    """The error for an unknown name lists the known names."""
    with pytest.raises(ValueError, match=re.escape(", ".join(names))):
        make()


@pytest.mark.parametrize("classes", [[True], [1.5], [None], "tabby"])
def test_classes_are_indices_or_names(classes: Any) -> None:
    """A bool, a float or a bare str is refused."""
    with pytest.raises(TypeError, match="class"):
        build_request(b"", classes=classes)


def test_a_path_is_read(tmp_path: Path) -> None:
    """Both str and Path name a file."""
    path = tmp_path / "image.png"
    path.write_bytes(b"png")
    assert build_request(path).encoded_image == b"png"
    assert build_request(str(path)).encoded_image == b"png"


def test_a_missing_file_is_told_as_python_does(tmp_path: Path) -> None:
    """A path that names nothing raises FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        build_request(tmp_path / "nothing.jpg")


def test_pixels_are_sent_row_by_row() -> None:
    """An array is sent with its size, and a strided view in its own order."""
    pixels = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    mirrored = pixels[:, ::-1, ::-1]
    raw = build_request(mirrored).raw_image
    assert (raw.height_px, raw.width_px) == (2, 5)
    received = np.frombuffer(raw.data, np.uint8).reshape(2, 5, 3)
    np.testing.assert_array_equal(received, mirrored)


@pytest.mark.parametrize(
    ("pixels", "error", "remedy"),
    [
        (np.zeros((4, 5, 3), np.float32), TypeError, r"float32.*\(image \* 255\)"),
        (np.zeros((4, 5, 3), np.int64), TypeError, "uint8 .* not int64$"),
        (np.zeros((4, 5), np.uint8), ValueError, r"\(4, 5\); from grey: np.stack"),
        (np.zeros((4, 5, 1), np.uint8), ValueError, "from grey: np.repeat"),
        (np.zeros((4, 5, 4), np.uint8), ValueError, "alpha"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, "channels first"),
        (np.zeros((1, 4, 5, 3), np.uint8), ValueError, r"image\[0\]"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"not \(0, 5, 3\)$"),
        ([[1, 2, 3]], TypeError, "not list"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_wrong_pixels_are_told_what_would_be_right(
    pixels: Any, error: type[Exception], remedy: str
) -> None:
    """The error says what is wrong with an array, and the remedy."""
    with pytest.raises(error, match=remedy):
        build_request(pixels)


def test_a_template_is_not_changed() -> None:
    """One template serves many images."""
    template = build_template(top_k=2)
    assert with_image(template, b"one").encoded_image == b"one"
    assert template.WhichOneof("image") is None
