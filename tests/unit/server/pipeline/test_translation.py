"""Requests in terms of the graph, and the best classes of its output."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.requests import ExplainRequest, RawImage, SmoothGrad, Target
from gradcam_server.pipeline.translation import Resolver, _best
from support.instant import InstantBackend

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "logits",
    [
        [3, 1, 2, 5, 4, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 2, 1, 2, 1, 2],
        [0.0, -0.0, 0.0, -1, 1, -0.0],
        [NAN, 1, NAN, 2, 3, NAN],
        [NAN] * 6,
        [-INF, INF, NAN, INF, 0, -INF],
    ],
)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6, 9])
def test_the_best_classes_are_those_of_a_stable_sort(logits: list[float], count: int) -> None:
    """Equal scores come in the order of the classes, and NaN last, for any number of classes."""
    array = np.array(logits, np.float32)
    expected = sorted(range(6), key=lambda index: (np.isnan(array[index]), -array[index]))
    assert _best(array, count).tolist() == expected[:count]


def test_options_of_many_kinds_are_resolved_each_as_it_says() -> None:
    """Requests that differ in one option, again and again and more than are remembered."""
    resolver = Resolver(ServeConfig())
    resolve = partial(resolver, catalog=InstantBackend().catalog)
    image = RawImage(b"", 1, 1)
    for _ in range(2):
        for number in range(300):
            smooth = SmoothGrad(2 + number % 7, number / 300)
            resolved = resolve(ExplainRequest(image, smooth_grad=smooth))
            assert resolved.passes == smooth.sample_count
    assert resolve(ExplainRequest(image)).passes == 0
    assert len(resolver._known) <= 256


@pytest.mark.parametrize("target", [Target(1), Target("class 1"), Target(2, against="class 1")])
def test_long_names_are_not_remembered(target: Target) -> None:
    """A class may be named with any number of spaces, which would stay in memory."""
    resolver = Resolver(ServeConfig())
    resolve = partial(resolver, catalog=InstantBackend().catalog)
    image = RawImage(b"", 1, 1)
    resolve(ExplainRequest(image, targets=(target,)))
    assert len(resolver._known) == 1
    for long in (Target("class 3" + " " * 2000), Target(2, against=" " * 2000 + "class 3")):
        resolved = resolve(ExplainRequest(image, targets=(target, long)))
        assert len(resolved.targets) == 2
    assert len(resolver._known) == 1


def test_requests_are_resolved_by_the_latest_catalog() -> None:
    """What was remembered of the models before their streams were compiled is forgotten."""
    resolver, catalog = Resolver(ServeConfig()), InstantBackend().catalog
    request = ExplainRequest(RawImage(b"", 1, 1))
    assert resolver(request, catalog).model is resolver(request, catalog).model
    (model,) = catalog.models
    changed = replace(catalog, models=(replace(model, streams=2, image_s=0.5),))
    assert resolver(request, changed).model.image_s == 0.5
