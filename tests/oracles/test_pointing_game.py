"""Pointing game: a small CNN names a shape on photographs, and the maps must point at it."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from gradcam_server.domain.registry import REGISTRY
from gradcam_server.domain.requests import Method
from gradcam_server.methods.one_pass import METHODS
from oracles.adapter import explain
from oracles.shapes import LAYERS, NONE, SIZE, backgrounds, draw, prepared, trained

Array = NDArray[Any]

# How far the hit rate must exceed that of a random pixel: both.
TIMES_CHANCE, ABOVE_CHANCE = 3.0, 0.5
# What becomes random, and the largest mean rank correlation with the maps before. Methods that
# keep nothing but positive gradients follow the activations, and those stay below a random head.
RANDOM_LAYERS = {
    "head": (("logits",), 0.85),
    "last block": (("logits", "last_"), 0.85),
    "all": (("",), 0.5),
}


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return trained()


@pytest.fixture(scope="module")
def game(network: keras.Model, images: Path) -> tuple[Array, Array, Array]:
    """Held-out images with a shape that the network names, their classes and boxes."""
    pictures, classes, boxes = draw(backgrounds(images, held_out=True), 600, seed=2)
    named = np.asarray(network(prepared(pictures), training=False)).argmax(axis=1)
    kept = (named == classes) & (classes != NONE)
    return prepared(pictures[kept]), classes[kept], boxes[kept]


def full_size(maps: Array) -> Array:
    """Maps (B, h, w) at the size of the images, as the server resizes."""
    return np.asarray(tf.image.resize(maps[..., None], (SIZE, SIZE)))[..., 0]


def hits(maps: Array, boxes: Array) -> float:
    """How often the hottest pixel lies in the box."""
    hottest = full_size(maps).reshape(len(maps), -1).argmax(axis=1)
    y, x = hottest // SIZE, hottest % SIZE
    top, bottom, left, right = boxes.T
    return float(((top <= y) & (y < bottom) & (left <= x) & (x < right)).mean())


def chance(boxes: Array) -> float:
    """How often a random pixel lies in the box."""
    top, bottom, left, right = boxes.T
    return float(((bottom - top) * (right - left)).mean() / SIZE**2)


def maps_of(model: keras.Model, method: Method, inputs: Array, classes: Array) -> list[Array]:
    """For each of ``LAYERS``, the signed maps (B, h, w)."""
    return [maps[:, 0] for maps in explain(model, LAYERS, method, inputs, classes[:, None])]


def wide_margin(boxes: Array) -> float:
    """The hit rate that the maps must reach, and that maps of other images must not."""
    return max(TIMES_CHANCE * chance(boxes), chance(boxes) + ABOVE_CHANCE)


def spearman(first: Array, second: Array) -> float:
    """The mean rank correlation of pairs of maps; a constant map correlates with nothing."""
    pairs = zip(first, second, strict=True)
    return float(np.mean([_correlation(_ranks(a), _ranks(b)) for a, b in pairs]))


def _ranks(values: Array) -> Array:
    """Ranks, the mean rank for ties."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]


def _correlation(first: Array, second: Array) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def randomised(model: keras.Model, prefixes: tuple[str, ...], seed: int) -> keras.Model:
    """A copy with the weights of some layers shuffled, which keeps their distribution."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    generator = np.random.default_rng(seed)
    for layer in copy.layers:
        if layer.name.startswith(prefixes):
            weights = layer.get_weights()
            layer.set_weights([generator.permuted(w.ravel()).reshape(w.shape) for w in weights])
    return copy


@pytest.fixture(scope="module")
def copies(network: keras.Model) -> dict[str, keras.Model]:
    """Copies with random weights from the head down, and an untouched one."""
    chosen = {name: prefixes for name, (prefixes, _) in RANDOM_LAYERS.items()}
    return {
        name: randomised(network, prefixes, seed=3)
        for name, prefixes in {"none": (), **chosen}.items()
    }


def test_the_network_knows_the_shapes(game: tuple[Array, Array, Array]) -> None:
    """The CNN names most held-out shapes, and their boxes are small."""
    _, classes, boxes = game
    print(f"{len(classes)} of 450 named, chance {chance(boxes):.3f}")
    assert len(classes) > 0.8 * 450
    assert chance(boxes) < 0.15


@pytest.mark.parametrize("method", METHODS)
def test_maps_point_at_the_shape(
    network: keras.Model, game: tuple[Array, Array, Array], method: Method
) -> None:
    """The hottest pixel is in the shape's box far more often than by chance."""
    inputs, classes, boxes = game
    for layer, maps in zip(LAYERS, maps_of(network, method, inputs, classes), strict=True):
        own, others = hits(maps, boxes), hits(maps, np.roll(boxes, 1, axis=0))
        print(f"{method} at {layer}: {own:.3f}; others' boxes {others:.3f}")
        assert own >= wide_margin(boxes), layer
        assert others < wide_margin(boxes), layer


@pytest.mark.parametrize("method", METHODS)
def test_maps_depend_on_what_was_learnt(
    network: keras.Model,
    copies: dict[str, keras.Model],
    game: tuple[Array, Array, Array],
    method: Method,
) -> None:
    """Random weights change the maps (Adebayo et al. 2018); a copy of the model does not."""
    inputs, classes = (part[:64] for part in game[:2])
    trained = maps_of(network, method, inputs, classes)[0]
    found = {
        name: spearman(trained, maps_of(copy, method, inputs, classes)[0])
        for name, copy in copies.items()
    }
    print(f"{method}: {found}")
    assert found.pop("none") > 0.999
    if not REGISTRY[method].needs_gradient:
        assert found.pop("head") > 0.999  # it is behind the layer
    for name, correlation in found.items():
        assert correlation < RANDOM_LAYERS[name][1], name
