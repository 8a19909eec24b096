"""The options of ``explain``: their names, types, help and errors."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import AsyncClient, Client, SmoothGrad, build_request, requests
from gradcam_client.options import RENAMED
from gradcam_client.requests import ExplainOptions, build_template
from gradcam_server.cli.explain import explain as command
from unit.client.fake_server import FakeServer

TAKERS = [
    *(Client.explain, Client.explain_stream, AsyncClient.explain, AsyncClient.explain_stream),
    *(build_request, build_template),
]
# Flags of the command that are no options of a request: its outputs, and how it finds a model.
OF_THE_COMMAND = {
    *("images", "output", "as_json", "npz", "colormap", "alpha", "server"),
    *("weights", "seed", "preprocessing", "outputs", "labels", "input_size", "custom_objects"),
}


@pytest.mark.parametrize("takes", TAKERS, ids=lambda takes: takes.__qualname__)
def test_help_spells_out_every_option(takes: Callable[..., Any]) -> None:
    """Each option has its type and default in the signature, and its line in the text."""
    shown = inspect.signature(takes).parameters
    documentation = inspect.getdoc(takes) or ""
    hints = get_type_hints(ExplainOptions)
    for name, hint in hints.items():
        assert shown[name].annotation == hint, name
        assert shown[name].default is not inspect.Parameter.empty
        assert f"\n    {name}: " in documentation
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())
    assert "**options" not in documentation


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (requests.MethodName, requests.METHODS),
        (requests.ScoreName, requests.SCORE_TYPES),
        (requests.FusionName, requests.LAYER_FUSIONS),
        (requests.ResizeName, requests.RESIZE_MODES),
        (requests.ColormapName, requests.COLORMAPS),
        (requests.FormatName, requests.HEATMAP_FORMATS),
    ],
)
def test_types_name_what_is_taken(names: Any, table: dict[str, int]) -> None:
    """Type checkers know the same names as the tables."""
    assert get_args(names) == tuple(table)


def test_options_are_named_as_the_command_names_them() -> None:
    """A flag that may be repeated is a plural here, and ``class`` is a word of Python."""
    plural = {"class": "classes", "layer": "layers"}
    flags = {
        max(parameter.opts, key=len).removeprefix("--").replace("-", "_")
        for parameter in command.params
        if parameter.name not in OF_THE_COMMAND and parameter.name is not None
    }
    ours = {plural.get(flag, flag) for flag in flags if not flag.startswith(("tls", "token"))}
    assert ours == set(ExplainOptions.__annotations__) - {
        "heatmaps",
        "logits",
        "model_version",
        "priority",
    }


def test_old_names_are_taken_with_a_warning(server: FakeServer) -> None:
    """The warning names the new name and the line of the caller, in both clients' methods."""
    old: dict[str, Any] = {
        "layer": "conv",
        "layer_fusion": "layercam",
        "pass_count": 3,
        "prediction_count": 2,
        "score_type": "probability",
        "smooth_grad": SmoothGrad(4),
        "include_logits": True,
    }
    assert set(old) == set(RENAMED)
    new = {RENAMED[name]: value for name, value in old.items()}
    with pytest.warns(DeprecationWarning, match="is now") as warned:
        request = build_request(b"7", **old)
    assert request == build_request(b"7", **new)
    assert {one.filename for one in warned} == {__file__}
    assert "'score_type' is now 'score'" in "".join(str(one.message) for one in warned)


def test_old_names_warn_of_the_line_that_calls(server: FakeServer) -> None:
    """The caller of a client's method is named, not a line of the client."""
    old: dict[str, Any] = {"score_type": "probability"}
    with Client(server.target) as client:
        for call in (client.explain, lambda image, **old: [*client.explain_stream([image], **old)]):
            with pytest.warns(DeprecationWarning, match="is now") as warned:
                call(b"7", **old)
            assert [one.filename for one in warned] == [__file__]
    assert {one.score_type for one in server.requests} == {pb.SCORE_TYPE_PROBABILITY}


async def test_old_names_warn_of_the_line_that_awaits(server: FakeServer) -> None:
    """A coroutine's warning names the caller, too."""
    async with AsyncClient(server.target) as client:
        with pytest.warns(DeprecationWarning, match="is now") as warned:
            await client.explain(b"7", pass_count=3)  # type: ignore[call-arg]
    assert [one.filename for one in warned] == [__file__]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"metod": "gradcam"}, "no option 'metod'; did you mean 'method'?"),
        ({"heatmap": ["raw"]}, "no option 'heatmap'; did you mean 'heatmaps'?"),
        ({"timeout": 3}, "no option 'timeout'; did you mean 'timeout_s'?"),
        ({"max_in_flight": 3}, "no option 'max_in_flight'; the options are model, classes"),
        ({"zzz": 3}, "no option 'zzz'; the options are model, classes"),
        ({"score": "logit", "score_type": "logit"}, "'score' is given twice"),
        ({"heatmaps": "overlay"}, r"heatmaps=['overlay']"),
        ({"heatmaps": [3]}, "a heat map is a name, or a form such as OverlayJpeg(), not 3"),
        ({"classes": 281}, "classes must be a sequence: classes=[281]"),
        ({"top_k": "3"}, "top_k must be a whole number, not '3'"),
        ({"predictions": True}, "predictions must be a whole number, not True"),
        ({"passes": 1.5}, "passes must be a whole number, not 1.5"),
        ({"smooth": True}, "smooth must be a number of noisy copies or a SmoothGrad, not True"),
    ],
)
def test_a_wrong_option_is_named_with_the_right_one(options: dict[str, Any], expected: str) -> None:
    """The error names the option and the nearest right one."""
    with Client("127.0.0.1:1") as client, pytest.raises(TypeError) as caught:
        client.explain(b"7", **options)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "gradcamm"}, "method must be one of gradcam, .*did you mean 'gradcam'?"),
        ({"score": "prob"}, "score must be one of logit, probability, not 'prob'"),
        ({"resize": "centre-crop"}, "did you mean 'center-crop'"),
        ({"heatmaps": ["overlays"]}, "heatmaps must be one of raw, .*did you mean 'overlay'"),
        ({"against": "dog"}, "against needs classes to compare"),
        ({"against": "dog", "classes": [("a", "b")]}, "against or pairs of classes, not both"),
    ],
)
def test_a_wrong_value_is_named_with_the_right_one(options: Any, expected: str) -> None:
    """The error lists the values, and the nearest one first."""
    with pytest.raises(ValueError, match=expected):
        build_request(b"7", **options)


def test_heat_maps_and_noise_may_be_given_in_short() -> None:
    """Names stand for forms with their defaults, and a number for SmoothGrad."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        request = build_request(b"7", heatmaps=["overlay", "image"], smooth=5)
    assert [one.format for one in request.heatmaps] == [
        pb.HEATMAP_FORMAT_OVERLAY_JPEG,
        pb.HEATMAP_FORMAT_IMAGE_FLOAT32,
    ]
    assert request.smooth_grad == SmoothGrad(5).to_proto()


def test_one_class_is_compared_with_all() -> None:
    """``against`` makes each class a contrast, as --against does."""
    assert build_request(b"7", classes=["a", 2], against="b") == build_request(
        b"7", classes=[("a", "b"), (2, "b")]
    )
