"""Models that do not scale their pixels, and those that do."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.engine.engine import Engine
from gradcam_server.models.loading import load

SIZE = 8


def head(x: Any) -> Any:
    return layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x))


def network(*first: Callable[[Any], Any], dtype: str = "float32", size: int = SIZE) -> keras.Model:
    """A convolution after the given first layers."""
    image = x = keras.Input((size, size, 3), dtype=dtype)
    for layer in first:
        x = layer(x)
    return keras.Model(image, head(layers.Conv2D(2, 3, padding="same")(x)))


def normalization() -> keras.Layer:
    return layers.Normalization(mean=[127.0] * 3, variance=[100.0] * 3)


def nested(*first: keras.Layer) -> keras.Model:
    """Transfer learning: the first layers are those of a nested model."""
    base = keras.Sequential([keras.Input((SIZE, SIZE, 3)), *first, layers.Conv2D(2, 3)])
    return keras.Sequential([base, layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")])


@keras.saving.register_keras_serializable("test_pixel_scaling")
class Halved(layers.Layer):
    """A user's layer that halves."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Scales."""
        return inputs / 2


def two_ways() -> keras.Model:
    """Two branches, one of which scales."""
    image = keras.Input((SIZE, SIZE, 3))
    one = layers.Conv2D(2, 3)(image)
    other = layers.Conv2D(2, 3)(layers.Rescaling(1 / 255)(image))
    return keras.Model(image, head(layers.Add()([one, other])))


def flat() -> keras.Model:
    return keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), layers.Conv2D(2, 1), layers.Flatten(), layers.Dense(2)]
    )


UNSCALED = {
    "convolution": network,
    "padding": lambda: network(layers.ZeroPadding2D(1), layers.Cropping2D(1)),
    "resizing": lambda: network(layers.Resizing(SIZE, SIZE), size=2 * SIZE),
    "center crop": lambda: network(layers.CenterCrop(SIZE, SIZE), size=2 * SIZE),
    "augmentation": lambda: network(layers.RandomFlip(), layers.RandomRotation(0.1)),
    "other channel order": lambda: network(lambda x: x[..., ::-1]),
    "dropout": lambda: network(layers.Dropout(0.2)),
    "scaling by one": lambda: network(layers.Rescaling(1.0)),
    "depthwise": lambda: network(layers.DepthwiseConv2D(3)),
    "separable": lambda: network(layers.SeparableConv2D(3, 3)),
    "scaled features": lambda: network(layers.Conv2D(2, 3), layers.Rescaling(1 / 255)),
    "batch normalisation behind": lambda: network(layers.Conv2D(2, 3), layers.BatchNormalization()),
    "nested": nested,
    "dense head": flat,
}
SCALED = {
    "Rescaling": lambda: network(layers.Rescaling(1 / 255)),
    "Rescaling of each channel": lambda: network(layers.Rescaling([0.1, 0.2, 0.3], [0, 0, 1])),
    "Normalization": lambda: network(normalization()),
    "batch normalisation": lambda: network(layers.BatchNormalization()),
    "division": lambda: network(lambda x: x / 255.0),
    "subtraction": lambda: network(lambda x: x - 127.0),
    "preprocess_input": lambda: network(keras.applications.imagenet_utils.preprocess_input),
    "keras.ops": lambda: network(lambda x: keras.ops.multiply(x, 0.01)),
    "behind resizing": lambda: network(
        layers.Resizing(SIZE, SIZE), layers.Rescaling(1 / 127.5, -1), size=2 * SIZE
    ),
    "nested": lambda: nested(layers.Rescaling(1 / 255)),
    "custom layer": lambda: network(Halved()),
    "one of two ways": two_ways,
    "integers": lambda: network(lambda x: keras.ops.cast(x, "float32"), dtype="uint8"),
}
CASES = [
    pytest.param(build, scales, id=f"{name}: {scales}")
    for scales, models in ((False, UNSCALED), (True, SCALED))
    for name, build in models.items()
]


@pytest.mark.parametrize(("build", "scales"), CASES)
def test_keras_models_that_scale_pixels_are_known(
    build: Callable[[], keras.Model], scales: bool, tmp_path: Path
) -> None:
    """The layers between the image and the first weights decide."""
    build().save(tmp_path / "m.keras")
    assert load(ModelSpec("m", str(tmp_path / "m.keras"))).scales_pixels is scales


# The custom layer's own operations are seen in a SavedModel, and scaling by one is arithmetic.
GRAPHS = {
    **{name: (UNSCALED[name], False) for name in ("convolution", "augmentation", "dense head")},
    "resizing": (UNSCALED["resizing"], False),
    "channels": (UNSCALED["other channel order"], False),
    "features": (UNSCALED["batch normalisation behind"], False),
    **{name: (SCALED[name], True) for name in ("Rescaling", "Normalization", "custom layer")},
    "batch normalisation": (SCALED["batch normalisation"], True),
    "preprocess_input": (SCALED["preprocess_input"], True),
    "integers": (SCALED["integers"], True),
}


@pytest.mark.parametrize(("build", "scales"), GRAPHS.values(), ids=GRAPHS)
def test_saved_models_that_scale_pixels_are_known(
    build: Callable[[], keras.Model], scales: bool, tmp_path: Path
) -> None:
    """The operations before the first convolution decide."""
    build().export(tmp_path / "m", verbose=False)
    assert load(ModelSpec("m", str(tmp_path / "m"))).scales_pixels is scales


@pytest.mark.parametrize(
    ("build", "preprocessing", "warns"),
    [
        (network, (), True),
        (network, ("none",), False),
        (network, ("tf",), False),
        (SCALED["Rescaling"], (), False),
    ],
    ids=["not said", "none", "tf", "scaled"],
)
def test_a_preprocessing_that_may_have_been_forgotten_is_warned_of(
    build: Callable[[], keras.Model],
    preprocessing: tuple[str, ...],
    warns: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, with the likely preprocessings; declaring one, also ``none``, ends the warning."""
    build().save(tmp_path / "m.keras")
    config = ServeConfig(model=(f"pets={tmp_path / 'm.keras'}",), preprocessing=preprocessing)
    with caplog.at_level(logging.WARNING):
        engine = Engine(config)
    warnings = [one.message for one in caplog.records if "no preprocessing" in one.message]
    assert len(warnings) == warns
    for message in warnings:
        assert message.startswith("pets: no preprocessing is declared")
        assert all(f" {mode} (" in message for mode in ("tf", "torch", "caffe", "none"))
    assert engine.catalog.models[0].preprocessing_declared is bool(preprocessing)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert bool(engine.sources["pets"].answer_by_likely_preprocessing(image)) is warns


def saved_as_keras(model: keras.Model, folder: Path) -> Path:
    model.save(folder / "m.keras")
    return folder / "m.keras"


def saved_as_graph(model: keras.Model, folder: Path) -> Path:
    model.export(folder / "m", verbose=False)
    return folder / "m"


@pytest.mark.parametrize("save", [saved_as_keras, saved_as_graph])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_likely_answers_are_those_of_the_model(
    save: Callable[[keras.Model, Path], Path], activation: str, tmp_path: Path
) -> None:
    """Keras' own preprocessing and its own prediction are the oracle."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(4, 3, activation="tanh"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation),
        ]
    )
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    preprocess = keras.applications.imagenet_utils.preprocess_input
    expected = {
        "none": image.astype(np.float32),
        **{
            mode: preprocess(image.astype(np.float32), data_format="channels_last", mode=mode)
            for mode in ("tf", "torch", "caffe")
        },
    }
    engine = Engine(ServeConfig(model=(f"pets={save(model, tmp_path)}",)))
    answers = engine.sources["pets"].answer_by_likely_preprocessing(image)
    assert list(answers) == list(expected)
    for how, pixels in expected.items():
        np.testing.assert_allclose(
            answers[Preprocessing(how)],
            model(pixels[None], training=False)[0],
            rtol=1e-4,
            err_msg=how,
        )
