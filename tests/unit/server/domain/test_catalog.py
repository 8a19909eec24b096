"""The catalog of served models."""

import pytest

from gradcam_server.domain.catalog import Catalog, ServedModel, graph_keys, many_pass_keys
from gradcam_server.domain.graph_io import PIXELS, GraphKey
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.errors import NotFoundError


def model(name: str, version: str = "") -> ServedModel:
    layers = tuple(
        LayerInfo(path, "Conv2D", (None, 7, 7, 8), True) for path in ("conv", "a/relu", "b/relu")
    )
    labels = ClassLabels([ClassLabel("cat")])
    return ServedModel(name, version, labels, layers, "conv", (8, 8), Preprocessing.NONE, "file")


CATALOG = Catalog((model("a", "2"), model("a", "1"), model("b")), (), (1, 4), 5)


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [("", "", "a:2"), ("a", "", "a:2"), ("a", "1", "a:1"), ("b", "", "b"), ("", "1", "a:1")],
)
def test_models_are_found_by_name_and_version(name: str, version: str, found: str) -> None:
    """The first model is the default, and the first version of each name."""
    assert CATALOG.find_model(name, version).id == found


@pytest.mark.parametrize(
    ("name", "version", "field", "message"),
    [
        ("c", "", "model", "unknown model 'c'; this server has: a, b"),
        ("a", "3", "model_version", "no version '3'; its versions are: 2, 1"),
        ("b", "1", "model_version", "no version '1'; its versions are: none"),
    ],
)
def test_unknown_models_and_versions_are_refused(
    name: str, version: str, field: str, message: str
) -> None:
    """The error lists the models or versions that exist."""
    with pytest.raises(NotFoundError, match=message) as caught:
        CATALOG.find_model(name, version)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("method", "layer", "counts"),
    [
        (Method.GRAD_CAM, "conv", [5]),
        (Method.GRAD_CAM, "a/relu", [1, 5]),
        (Method.EIGEN_GRAD_CAM, "conv", [1, 5]),
        (Method.EIGEN_CAM, "a/relu", [5]),
    ],
)
def test_one_target_does_not_pay_for_several(method: Method, layer: str, counts: list[int]) -> None:
    """A graph for one target exists where each further target costs a gradient or a map."""
    keys = graph_keys(CATALOG.models[0], (layer,), method, ScoreType.LOGIT, 5)
    assert [key.max_targets for key in keys] == counts


def test_an_export_has_the_graphs_of_the_methods_of_many_passes() -> None:
    """SmoothGrad of the method, Score-CAM of its layers, and Integrated Gradients, for 1 and 5."""
    key = GraphKey("a", ("b/relu",), Method.LAYER_CAM, ScoreType.PROBABILITY, 5)
    found = many_pass_keys([key, key], "conv")
    assert len(found) == len(set(found))
    assert all(one.perturbed and one.score_type is ScoreType.PROBABILITY for one in found)
    assert [(one.method, one.layers, one.max_targets, one.channel_count) for one in found] == [
        (Method.GRAD_CAM, ("b/relu",), 5, 64),
        *(
            (method, layers, count, 0)
            for count in (1, 5)
            for method, layers in (
                (Method.LAYER_CAM, ("b/relu",)),
                (Method.GRAD_CAM, ("conv",)),
                (Method.HIRES_CAM, (PIXELS,)),
            )
        ),
    ]
