"""The values of --warm."""

import pytest

from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.domain.warm import WarmGraph, parse_warm, warm_option
from gradcam_server.errors import StartupError


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("gradcam", WarmGraph(Method.GRAD_CAM, ScoreType.LOGIT, ())),
        ("layercam@a/b+c#2", WarmGraph(Method.LAYER_CAM, ScoreType.LOGIT, ("a/b", "c#2"))),
        ("gradcam++:logit", WarmGraph(Method.GRAD_CAM_PLUS_PLUS, ScoreType.LOGIT, ())),
        ("hirescam:probability@a:0", WarmGraph(Method.HIRES_CAM, ScoreType.PROBABILITY, ("a:0",))),
    ],
)
def test_method_score_and_layers_are_read(option: str, expected: WarmGraph) -> None:
    """Only the method is required; the default is the logit at the default layer."""
    assert parse_warm(option) == expected


@pytest.mark.parametrize("score_type", list(ScoreType))
@pytest.mark.parametrize("layers", [("top",), ("base/conv", "top")])
def test_a_graph_is_written_as_it_is_read(score_type: ScoreType, layers: tuple[str, ...]) -> None:
    """The option that errors suggest names the same graph."""
    key = GraphKey("pets", layers, Method.LAYER_CAM, score_type, 5)
    assert parse_warm(warm_option(key)) == WarmGraph(Method.LAYER_CAM, score_type, layers)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("magic@a", "the method must be one of gradcam, "),
        ("scorecam@a", "scorecam takes many passes"),
        ("gradcam:@a", "the score must be logit or probability"),
        ("gradcam:softmax", "the score must be logit or probability"),
        ("gradcam@", "a name of a layer is empty"),
        ("gradcam@a+", "a name of a layer is empty"),
    ],
)
def test_another_form_is_refused(option: str, message: str) -> None:
    """The error lists the allowed values."""
    with pytest.raises(StartupError, match=f"--warm .*{message}"):
        parse_warm(option)
