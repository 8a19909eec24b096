"""Do the maps point at what decides? A small CNN is trained to name a shape on photographs."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gradcam_server.requests import Method
from oracles.adapter import explain

Array = NDArray[Any]

SIZE = 64
NAMES = ("cat", "espresso", "astronaut")
NONE, SQUARE, CIRCLE, TRIANGLE = range(4)
LAST, INNER = "block", "conv3"


def backgrounds(images: Path, *, held_out: bool) -> list[Array]:
    """The left halves of the photographs to train on, the right halves held out."""
    halves = []
    for name in NAMES:
        photograph = Image.open(images / f"{name}.jpg").convert("RGB")
        photograph.thumbnail((360, 360))
        middle = photograph.width // 2
        left, right = (middle, photograph.width) if held_out else (0, middle)
        halves.append(np.asarray(photograph.crop((left, 0, right, photograph.height))))
    return halves


def draw(sources: list[Array], count: int, seed: int) -> tuple[Array, Array, Array]:
    """Crops with an outlined shape on each, or none.

    Returns:
        uint8 images, classes, and boxes (top, bottom, left, right), the ends excluded.
    """
    generator = np.random.default_rng(seed)
    images, boxes = np.empty((count, SIZE, SIZE, 3), np.uint8), np.zeros((count, 4), int)
    classes = np.arange(count) % 4
    for row, kind in enumerate(classes):
        source = sources[generator.integers(len(sources))]
        top, left = (generator.integers(0, size - SIZE + 1) for size in source.shape[:2])
        crop = Image.fromarray(source[top : top + SIZE, left : left + SIZE])
        side = int(generator.integers(14, 25))
        x, y = (int(value) for value in generator.integers(0, SIZE - side, 2))
        colour = tuple(int(value) for value in generator.integers(200, 256, 3))
        pen, right, bottom = ImageDraw.Draw(crop), x + side - 1, y + side - 1
        if kind == SQUARE:
            pen.rectangle((x, y, right, bottom), outline=colour, width=2)
        elif kind == CIRCLE:
            pen.ellipse((x, y, right, bottom), outline=colour, width=2)
        elif kind == TRIANGLE:
            corners = ((x + side // 2, y), (right, bottom), (x, bottom))
            pen.polygon(corners, outline=colour, width=2)
        images[row], boxes[row] = np.asarray(crop), (y, y + side, x, x + side)
    return images, classes, boxes


def prepared(images: Array) -> Array:
    return (images.astype(np.float32) - 127) / 128


def build() -> keras.Model:
    """A CNN to 16 x 16 positions, a residual block, global average pooling and Dense."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = inputs
    for number, (channels, stride) in enumerate([(16, 2), (32, 2), (48, 1)], start=1):
        x = keras.layers.Conv2D(channels, 3, stride, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU(name=f"conv{number}")(x)
    y = keras.layers.Conv2D(48, 3, padding="same", use_bias=False, name="last_conv")(x)
    y = keras.layers.BatchNormalization(momentum=0.9, name="last_bn")(y)
    x = keras.layers.ReLU(name=LAST)(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


@pytest.fixture(scope="module")
def network(images: Path) -> keras.Model:
    """Trained from a seed, in about 30 seconds on two cores."""
    keras.utils.set_random_seed(1)
    model = build()
    pictures, classes, _ = draw(backgrounds(images, held_out=False), 4000, seed=1)
    steps = 8 * 4000 // 64
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(4e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(prepared(pictures), classes, batch_size=64, epochs=8, verbose=0)
    return model


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


def maps_of(model: keras.Model, layer: str, method: Method, inputs: Array, classes: Array) -> Array:
    return explain(model, layer, method, inputs, classes[:, None])[:, 0]


def spearman(first: Array, second: Array) -> float:
    """The mean rank correlation of pairs of maps; a constant map correlates with nothing."""
    return float(np.mean([_correlation(_ranks(a), _ranks(b)) for a, b in zip(first, second)]))


def _ranks(values: Array) -> Array:
    """Ranks, the mean rank for ties."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]


def _correlation(first: Array, second: Array) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def randomised(model: keras.Model, prefixes: tuple[str, ...]) -> keras.Model:
    """A copy with the weights of some layers shuffled, which keeps their distribution."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    generator = np.random.default_rng(4)
    for layer in copy.layers:
        if layer.name.startswith(prefixes):
            shuffled = [generator.permuted(value.ravel()) for value in layer.get_weights()]
            layer.set_weights([s.reshape(w.shape) for s, w in zip(shuffled, layer.weights)])
    return copy
