"""A small CNN that names a shape on photographs, and its images. Run, it trains the CNN anew.

    PYTHONPATH=tests python -m oracles.shapes

The trained weights lie beside this file: trained on another CPU they would be others.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[Any]

SIZE = 64
LAYERS = ("block", "conv3")
NONE, SQUARE, CIRCLE, TRIANGLE = range(4)
NAMES = ("cat", "espresso", "astronaut")

_IMAGES = Path(__file__).resolve().parents[2] / "examples" / "images"
_WEIGHTS = Path(__file__).with_name("shapes.npz")


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
    """Returns a CNN to 16 x 16 positions, a residual block, global average pooling and Dense."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = inputs
    for number, (channels, stride) in enumerate([(16, 2), (32, 2), (48, 1)], start=1):
        x = keras.layers.Conv2D(channels, 3, stride, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU(name=f"conv{number}")(x)
    y = keras.layers.Conv2D(48, 3, padding="same", use_bias=False, name="last_conv")(x)
    y = keras.layers.BatchNormalization(momentum=0.9, name="last_bn")(y)
    x = keras.layers.ReLU(name=LAYERS[0])(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


def trained() -> keras.Model:
    """Returns the trained CNN."""
    model = build()
    with np.load(_WEIGHTS) as weights:
        model.set_weights([weights[f"arr_{number}"] for number in range(len(weights))])
    return model


def train() -> keras.Model:
    """Trains the CNN from a seed, for about a minute."""
    keras.utils.set_random_seed(1)
    model = build()
    pictures, classes, _ = draw(backgrounds(_IMAGES, held_out=False), 4000, seed=1)
    steps = 8 * 4000 // 64
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(4e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(prepared(pictures), classes, batch_size=64, epochs=8, verbose=0)
    return model


if __name__ == "__main__":
    np.savez_compressed(_WEIGHTS, *train().get_weights())
