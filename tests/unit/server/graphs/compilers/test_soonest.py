"""The graph that is ready soonest gives the same answers, with one trace for all methods."""

import gc

import numpy as np
import pytest

from gradcam_server.domain.graph_io import (
    PIXELS,
    GraphItem,
    GraphKey,
    GraphOutput,
    GraphTarget,
    by_rank,
)
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.domain.registry import ONE_PASS_METHODS as METHODS
from gradcam_server.domain.registry import differentiated_as
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.errors import DisconnectedLayerError
from gradcam_server.graphs.compilers.autotune import compile_graph
from gradcam_server.graphs.compilers.soonest import SoonestCompiler
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.models.loaded import LoadedModel
from support.small_model import SIZE, load_small


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_small()


@pytest.fixture
def soonest() -> SoonestCompiler:
    return SoonestCompiler(Precision.FLOAT32)


def key(method: Method, *layers: str, channels: int = 0, score: ScoreType = ScoreType.LOGIT):  # type: ignore[no-untyped-def]
    return GraphKey("small", layers, method, score, 3, channel_count=channels)


def answers(compiled: CompiledGraph, count: int) -> list[GraphOutput]:
    images = np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    targets = [GraphTarget(by_rank(0)), GraphTarget(3, 1), GraphTarget(2)]
    return compiled.run([GraphItem(image, targets) for image in images], count)


@pytest.mark.parametrize(
    "asked",
    [
        *(key(method, "block") for method in METHODS),
        key(Method.GRAD_CAM, "conv1", "bn1"),
        key(Method.LAYER_CAM, "conv3", score=ScoreType.PROBABILITY),
        key(Method.HIRES_CAM, PIXELS),
        key(Method.GRAD_CAM, "block", "relu1", channels=4),
    ],
    ids=str,
)
def test_it_gives_the_same_answers(
    model: LoadedModel, soonest: SoonestCompiler, asked: GraphKey
) -> None:
    """Logits, classes, scores and maps of each method and kind of layer, at any batch size."""
    graph = ExplanationGraph(model, asked, CompilationCounter())
    ours, expected = soonest(graph, (1, 3)), compile_graph(graph, (1, 3), Compiler.TENSORFLOW)
    for count in (1, 3):
        for one, other in zip(answers(ours, count), answers(expected, count), strict=True):
            assert one.classes.tolist() == other.classes.tolist()
            for a, b in zip(
                (one.logits, one.probabilities, one.scores, *one.maps),
                (other.logits, other.probabilities, other.scores, *other.maps),
                strict=True,
            ):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_methods_share_a_trace_while_a_graph_uses_it(
    model: LoadedModel, soonest: SoonestCompiler
) -> None:
    """All methods at a layer share a trace; another layer has its own; unused traces go."""
    counter = CompilationCounter()
    graphs = [
        soonest(ExplanationGraph(model, key(method, "block"), counter), (1,)) for method in METHODS
    ]
    traces = len({differentiated_as(method) for method in METHODS})
    assert counter.count == traces < len(METHODS)
    graphs.append(soonest(ExplanationGraph(model, key(METHODS[0], "conv3"), counter), (1,)))
    assert counter.count == traces + 1
    graphs.clear()
    gc.collect()
    soonest(ExplanationGraph(model, key(METHODS[0], "block"), counter), (1,))
    assert counter.count == traces + 2


def test_nothing_is_run_or_measured_before_the_first_image(
    model: LoadedModel, soonest: SoonestCompiler
) -> None:
    """The time that was not measured lets no deadline count as missed."""
    graph = soonest(
        ExplanationGraph(model, key(Method.GRAD_CAM, "block"), CompilationCounter()), (1, 4)
    )
    assert graph.min_s < 1e-6
    assert graph.plan(1) == (1, 1)
    assert graph.plan(4) == (4, 4)


def test_a_layer_that_the_classes_do_not_depend_on_is_found_while_compiling(
    model: LoadedModel, soonest: SoonestCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the layer, as with other compilers."""
    import tensorflow as tf

    monkeypatch.setattr(tf, "gradients", lambda ys, xs, grad_ys=None: [None for _ in xs])
    with pytest.raises(DisconnectedLayerError, match="block"):
        soonest(ExplanationGraph(model, key(Method.GRAD_CAM, "block"), CompilationCounter()), (1,))
