"""The true answers of a bundle are true, and its other graph predicts as the product does."""

from dataclasses import replace

import numpy as np
import pytest

from gpu_check.bundle import PredictionGraph, explain_precisely
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput, GraphTarget, by_rank
from gradcam_server.domain.options import Precision
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.graphs.compilers.pjrt import Weights, convert
from gradcam_server.graphs.compilers.pjrt_devices import set_up_devices
from gradcam_server.graphs.compilers.pjrt_modules import read_signature
from gradcam_server.graphs.compilers.pjrt_runtime import load_module, put_weights
from gradcam_server.graphs.compilers.soonest import SoonestCompiler
from gradcam_server.graphs.executable import CompilationCounter
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.models.loaded import LoadedModel
from oracles.precise import in_float64
from support.small_model import CLASSES, SIZE, build_network, load_small

KEY = GraphKey("small", ("block",), Method.GRAD_CAM, ScoreType.LOGIT, 5)
# The plain method, one that divides by gradients, one that contrasts scores, one without gradient.
KEYS = [
    replace(KEY, method=method, score_type=score)
    for method, score in (
        (Method.GRAD_CAM, ScoreType.LOGIT),
        (Method.GRAD_CAM_PLUS_PLUS, ScoreType.PROBABILITY),
        (Method.FINER_CAM, ScoreType.LOGIT),
        (Method.EIGEN_CAM, ScoreType.LOGIT),
    )
]
IMAGES = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_small()


def run(model: LoadedModel, key: GraphKey, compiler: SoonestCompiler) -> list[GraphOutput]:
    items = [
        GraphItem(image, [GraphTarget(by_rank(rank)) for rank in range(5)]) for image in IMAGES
    ]
    return compiler(ExplanationGraph(model, key, CompilationCounter()), (2,)).run(items, 2)


def test_true_answers_are_those_of_the_product_but_for_rounding(model: LoadedModel) -> None:
    """Methods and scores in float64, apart from our graphs, agree with these in float32."""
    network = build_network()
    with in_float64():
        precise = build_network()
        precise.set_weights(network.get_weights())
        found = explain_precisely(precise, KEYS, IMAGES)
    compiler = SoonestCompiler(Precision.FLOAT32)
    for number, key in enumerate(KEYS):
        true_maps = found[f"maps_{number}"]
        assert true_maps.dtype == np.float64
        for image, output in enumerate(run(model, key, compiler)):
            assert output.logits == pytest.approx(found["logits"][image], rel=1e-4, abs=1e-4)
            expected = found["probabilities"][image]
            assert output.probabilities == pytest.approx(expected, abs=1e-5)
            assert np.array_equal(output.classes, found["classes"][image])
            for ours, expected in zip(output.maps[0], true_maps[image], strict=True):
                assert ours == pytest.approx(expected, abs=1e-3 * np.abs(expected).max()), key


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
def test_prediction_alone_is_the_same_network(precision: Precision, model: LoadedModel) -> None:
    """It takes the inputs of an explanation, and gives its logits and probabilities alone."""
    weights = Weights()
    graphs = [
        kind(model, KEY, CompilationCounter()) for kind in (ExplanationGraph, PredictionGraph)
    ]
    explain, predict = (convert(graph, precision, 2, weights) for graph in graphs)
    signatures = [read_signature(one.artifact) for one in (explain, predict)]
    assert signatures[1].inputs == signatures[0].inputs
    assert [one.shape for one in signatures[1].outputs] == [(2, CLASSES)] * 2
    (device,) = set_up_devices(["CPU:0"])
    on_device = put_weights(weights.values, device)
    targets = np.zeros((2, 5), np.int32)
    expected, found = (
        load_module(one.artifact, [on_device[name] for name in one.weights], device)(
            IMAGES, targets, np.full_like(targets, np.iinfo(np.int32).min)
        )
        for one in (explain, predict)
    )
    assert len(found) == 2
    for ours, other in zip(found, expected, strict=False):
        assert ours == pytest.approx(other, rel=2e-2, abs=1e-2)
