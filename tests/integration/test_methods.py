"""Methods, scores, layers and passes, through a real server."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradcam_client import (
    Client,
    ImageArray,
    ImageExplanation,
    InvalidRequestError,
    NotFoundError,
    Progress,
    Raw,
    SmoothGrad,
)
from gradcam_client.requests import MANY_PASS_METHODS, METHODS
from gradcam_server.cli.local import LocalClient
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Compiler
from support.server import RunningServer
from support.xla_exports import NO_TENSORFLOW, SMALL_LAYERS, exported_small, serving_xla

ONE_PASS = [method for method in METHODS if method not in MANY_PASS_METHODS]
LAYERS = ["block3b_add", "block5c_add", "top_activation"]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server that compiles quickly, of two models, with LayerCAM of the first warm.

    It has no other batch size, so requests that wait share a batch whatever batches cost here.
    """
    running = RunningServer(
        *("--model", "efficientnet-lite0", "--compiler", "tensorflow", "--batch-sizes", "4"),
        *("--model", f"small={exported_small() / 'small.keras'}", "--preprocessing", "small=lite"),
        *("--warm", "layercam"),
        *("--warm", f"layercam@{'+'.join(LAYERS)}"),
    )
    try:
        yield running.wait_ready()
        assert "Traceback" not in running.text, running.text
    finally:
        running.kill()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=200) as client:
        yield client


@pytest.fixture
def local() -> Iterator[LocalClient]:
    config = ServeConfig(
        model=("efficientnet-lite0",), batch_sizes=(4,), compiler=Compiler.TENSORFLOW
    )
    with LocalClient(config) as local:
        yield local


def assert_same(actual: ImageExplanation, expected: ImageExplanation) -> None:
    assert actual.model == expected.model
    for one, other in zip(actual.explanations, expected.explanations, strict=True):
        facts = ("index", "layer", "method", "score_type", "against", "degenerate")
        assert [getattr(one, f) for f in facts] == [getattr(other, f) for f in facts]
        assert one.score == pytest.approx(other.score, rel=1e-3, abs=1e-4)
        scale = float(np.abs(other.heatmap).max())
        np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=2e-3, atol=2e-4 * scale)


def test_mixed_methods_scores_and_layers_are_each_answered_right(
    client: Client, images: Path
) -> None:
    """80 concurrent requests of all kinds: batches are of one graph, and answers are right."""
    kinds: list[dict[str, Any]] = [
        *({"method": method} for method in ONE_PASS),
        {"classes": [(285, 281), 282], "method": "hirescam"},
        {"classes": [281], "score": "probability"},
        {"layers": LAYERS, "method": "layercam", "classes": [285]},
        {"layers": LAYERS, "method": "layercam", "fusion": "layercam"},
        {"layers": "block5c_add", "top_k": 3},
    ]
    photos = [images / f"{name}.jpg" for name in ("cat", "espresso", "astronaut")]
    rng = random.Random(1)
    requests = [(rng.choice(photos), kinds[number % len(kinds)]) for number in range(80)]
    config = ServeConfig(
        model=("efficientnet-lite0",), compiler=Compiler.TENSORFLOW, batch_sizes=(1,)
    )
    with LocalClient(config) as local:
        known: dict[str, ImageExplanation] = {}
        for photo, kind in requests:
            if f"{photo}{kind}" not in known:
                known[f"{photo}{kind}"] = next(local.explain_stream([photo], **kind)).unwrap()
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda one: client.explain(one[0], **one[1]), requests))
        again = list(pool.map(lambda one: client.explain(one[0], **one[1]), requests))
    assert not any(answer.stats.compile_us for answer in again)  # all of it is ready now
    for (photo, kind), answer, repeated in zip(requests, answers, again, strict=True):
        assert_same(answer, known[f"{photo}{kind}"])
        assert_same(repeated, known[f"{photo}{kind}"])
    assert max(answer.stats.batch_size for answer in again) > 1


def test_what_was_named_is_warm(client: Client, cat_jpeg: bytes) -> None:
    """With ``--warm`` the first request does not compile."""
    one = client.explain(cat_jpeg, method="layercam")
    other = client.explain(cat_jpeg, method="layercam", layers=LAYERS, fusion="layercam")
    assert one.stats.compile_us == other.stats.compile_us == 0
    assert set(LAYERS) <= set(client.get_model().compiled_layers)


def test_methods_coincide_where_the_head_is_linear(client: Client, cat_jpeg: bytes) -> None:
    """After global pooling and one dense layer, three methods are equal, and two others are."""
    maps = {m: client.explain(cat_jpeg, method=m).explanations[0].heatmap for m in ONE_PASS}
    scale = maps["gradcam"].max()
    for same in ("hirescam", "xgradcam"):
        np.testing.assert_allclose(maps[same], maps["gradcam"], rtol=1e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(maps["layercam"], maps["elementwise-gradcam"], rtol=1e-3, atol=1e-5)
    for other in ("gradcam++", "layercam", "eigengradcam"):
        assert not np.allclose(maps[other] / maps[other].max(), maps["gradcam"] / scale, atol=0.01)


def test_fused_layers_are_one_fine_map(client: Client, cat_jpeg: bytes) -> None:
    """LayerCAM's fusion has the highest layer resolution and values from 0 to 1."""
    (fused,) = client.explain(
        cat_jpeg, layers=LAYERS, method="layercam", fusion="layercam"
    ).explanations
    assert fused.layer == " + ".join(LAYERS)
    assert fused.heatmap.shape == (28, 28)
    assert fused.raw_max <= 1
    apart = client.explain(cat_jpeg, layers=LAYERS, method="layercam").explanations
    assert [one.layer for one in apart] == LAYERS
    assert [one.heatmap.shape for one in apart] == [(28, 28), (14, 14), (7, 7)]


def test_integrated_gradients_are_complete(client: Client, cat_jpeg: bytes) -> None:
    """The attributions sum to score(image) - score(black), within 5 % at 256 steps.

    The negative part of a contrast's map is the positive part of the opposite contrast's.
    """
    contrasts = [(285, 967), (967, 285)]
    result = client.explain(cat_jpeg, method="integrated-gradients", passes=256, classes=contrasts)
    assert result.stats.pass_count == 257
    positive, negative = result.explanations
    assert positive.layer == "pixels"
    assert positive.heatmap.shape == (224, 224)
    assert positive.raw_min == pytest.approx(-negative.raw_max, rel=1e-3)
    black = np.zeros((8, 8, 3), np.uint8)
    (baseline, _) = client.explain(black, classes=contrasts).explanations
    total = positive.heatmap.sum() - negative.heatmap.sum()
    assert total == pytest.approx(positive.score - baseline.score, rel=0.05)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"method": "scorecam"}, 66),
        ({"method": "scorecam", "passes": 20}, 22),
        ({"method": "scorecam", "passes": 20, "layers": LAYERS[1:]}, 42),
        ({"method": "gradcam", "smooth": SmoothGrad(6)}, 7),
        ({"method": "layercam", "smooth": SmoothGrad(4), "layers": LAYERS}, 5),
    ],
)
def test_methods_of_many_passes_see_the_cat(
    client: Client, cat_jpeg: bytes, options: dict[str, Any], passes: int
) -> None:
    """The heat is on the cat's head, the passes are reported, and a repetition is equal."""
    forms = [ImageArray(), Raw()]
    first = client.explain(cat_jpeg, heatmaps=forms, **options)
    again = client.explain(cat_jpeg, heatmaps=forms, **options)
    assert first.stats.pass_count == again.stats.pass_count == passes
    assert_same(again, first)
    heat = first.explanations[-1].heatmaps[0].array
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 20 < row < 270
    assert 40 < column < 360
    head = heat[20:270, 40:360]
    assert head.sum() / heat.sum() > head.size / heat.size + 0.1
    assert first.top.index == 285


@pytest.mark.parametrize("place", ["client", "local"])
def test_progress_is_told(request: pytest.FixtureRequest, cat_jpeg: bytes, place: str) -> None:
    """Completed passes grow up to the total, before the answer."""
    told: list[Progress] = []
    (outcome,) = request.getfixturevalue(place).explain_stream(
        [cat_jpeg], method="scorecam", passes=250, on_progress=told.append
    )
    assert outcome.unwrap().stats.pass_count == 252
    completed = [one.completed_passes for one in told]
    assert completed  # how often depends on how long they take
    assert completed == sorted(set(completed))
    assert {(one.source, one.total_passes) for one in told} == {(cat_jpeg, 252)}


def test_many_passes_never_starve_one_pass(
    client: Client, server: RunningServer, cat_jpeg: bytes
) -> None:
    """Twenty one-pass requests, one after the other, overtake two requests of 128 passes."""
    client.explain(cat_jpeg, method="scorecam", passes=1)  # compiled
    with ThreadPoolExecutor(2) as pool:
        heavy = [
            pool.submit(client.explain, cat_jpeg, method="scorecam", passes=128) for _ in range(2)
        ]
        time.sleep(0.2)
        for _ in range(20):
            assert client.explain(cat_jpeg).top.index == 285
        assert not any(one.done() for one in heavy)
        for one in heavy:
            assert one.result().stats.pass_count == 130


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"method": "scorecam", "passes": 257}, InvalidRequestError, "257 passes.*1 to 256"),
        (
            {"method": "scorecam", "layers": LAYERS, "passes": 90},
            InvalidRequestError,
            "270 pass",
        ),
        ({"passes": 9}, InvalidRequestError, "pass_count is for"),
        ({"smooth": SmoothGrad(1000)}, InvalidRequestError, "1000 passes"),
        ({"smooth": SmoothGrad(4, 2.0)}, InvalidRequestError, "must be 0 to 1"),
        (
            {"method": "scorecam", "smooth": SmoothGrad(4)},
            InvalidRequestError,
            "SmoothGrad is for one-pass methods",
        ),
        ({"layers": ["top_activation", "nope"]}, NotFoundError, "no layer 'nope'"),
        ({"classes": [(285, "nonsense")]}, InvalidRequestError, "unknown class 'nonsense'"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    client: Client, cat_jpeg: bytes, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """The error says what is right, before any pass runs."""
    with pytest.raises(kind, match=message):
        client.explain(cat_jpeg, **options)


def test_saturated_probabilities_are_flagged(client: Client, images: Path) -> None:
    """A probability whose gradient is lost in rounding is flagged; the logit is not."""
    flat = np.zeros((32, 32, 3), np.uint8)
    (unlikely,) = client.explain(flat, classes=[967], score="probability").explanations
    (logit,) = client.explain(flat, classes=[967]).explanations
    probability = unlikely.score
    assert unlikely.saturated == (probability * (1 - probability) < 1e-5)
    assert not logit.saturated
    (cat,) = client.explain(images / "cat.jpg", classes=[285], score="probability").explanations
    assert not cat.saturated
    assert cat.score == pytest.approx(0.82, abs=0.02)


def kinds_of_requests() -> Iterator[dict[str, Any]]:
    """Yields requests to models that the test has as an export for XLA, too."""
    yield {"top_k": 2, "logits": True, "predictions": 1000}
    yield {"classes": [(285, 281), 967], "resize": "letterbox"}
    for options in (
        {"method": "layercam"},
        {"layers": "block6d_add"},
        {"layers": "block6d_add", "method": "hirescam", "score": "probability"},
    ):
        yield {**options, "classes": [281, 282]}
    # The small network's export has all methods, which unit tests compare.
    for method, score in (
        *(("gradcam++", "logit"), ("finercam", "probability")),
        *(("eigengradcam", "probability"), ("hirescam", "logit")),
    ):
        options = {"method": method, "score": score}
        yield {"model": "small", "layers": list(SMALL_LAYERS), **options}
    yield {"model": "small", "smooth": SmoothGrad(4), "top_k": 2}
    yield {"model": "small", "method": "scorecam", "passes": 6}
    yield {"model": "small", "method": "integrated-gradients", "passes": 8}


def assert_agrees(ours: ImageExplanation, theirs: ImageExplanation, said: str) -> None:
    """Asserts the same classes, and maps that differ by at most 1e-4 of their maximum."""
    assert ours.model == theirs.model
    assert ours.top.index == theirs.top.index, said
    # Sorted by class: many of a thousand classes are equally unlikely.
    mine, exact = (
        sorted((p.index, p.probability) for p in one.predictions) for one in (ours, theirs)
    )
    np.testing.assert_allclose(mine, exact, rtol=1e-3, atol=1e-6, err_msg=said)
    assert len(ours.explanations) == len(theirs.explanations) > 0
    for one, other in zip(ours.explanations, theirs.explanations, strict=True):
        for fact in ("index", "against", "layer", "method", "score_type"):
            assert getattr(one, fact) == getattr(other, fact), said
        assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-5), said
        # A map may be zero, after its ReLU: then both are.
        tolerance = 1e-4 * np.abs(other.heatmap).max()
        np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=0, atol=tolerance, err_msg=said)
    assert any(one.raw_max > 0 for one in theirs.explanations), said


def test_a_server_without_tensorflow_gives_the_same_answers(client: Client, images: Path) -> None:
    """Each graph of an export for XLA agrees to 1e-4 of the map's maximum with the model's."""
    photos = [images / f"{name}.jpg" for name in ("cat", "espresso")]
    small = ("--model", f"small={exported_small() / 'export'}", "--max-targets", "2")
    with serving_xla(*small) as server, Client(server.address, timeout_s=200) as other:
        (engine,) = server.engines()
        assert "libtensorflow" not in Path(f"/proc/{engine.pid}/maps").read_text()
        for options, photo in product(kinds_of_requests(), photos):
            ours, theirs = (one.explain(photo, **options) for one in (other, client))
            assert_agrees(ours, theirs, str(options))


def test_a_server_that_needs_tensorflow_does_not_start_without_it() -> None:
    """So the servers of exports that tests start do without it, not with another copy."""
    server = RunningServer("--model", "efficientnet-lite0", PYTHONPATH=NO_TENSORFLOW)
    try:
        assert server.wait() == 1
        assert "needs tensorflow: pip install 'gradcam-server[cpu]'" in server.text
        assert "Traceback" not in server.text
    finally:
        server.kill()
