"""Folding a normalisation changes neither answers nor outputs of layers."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradcam_server.models.keras_network import KerasNetwork

SIZE = 12
layers = keras.layers

LINEAR: dict[str, Callable[..., keras.Layer]] = {
    "conv": lambda **more: layers.Conv2D(6, 3, padding="same", name="linear", **more),
    "depthwise": lambda **more: layers.DepthwiseConv2D(
        3, depth_multiplier=2, padding="same", name="linear", **more
    ),
    "separable": lambda **more: layers.SeparableConv2D(6, 3, name="linear", **more),
    "dense": lambda **more: layers.Dense(6, name="linear", **more),
}


def build(
    linear: keras.Layer, normalization: keras.Layer | None = None, ending: str = ""
) -> keras.Model:
    """A linear layer and its normalisation, with statistics that are not trivial."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = linear(inputs)
    y = (normalization or layers.BatchNormalization(name="norm"))(x)
    y = layers.ReLU(name="relu")(y)
    if ending == "also used by others":
        y = layers.Add()([x, y])
    y = layers.GlobalAveragePooling2D()(y)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(y))
    random = np.random.default_rng(5)
    for layer in model.layers:
        # Variances, among them, are positive.
        layer.set_weights(
            [
                np.abs(random.standard_normal(w.shape)) + 0.1
                if w.ndim == 1
                else random.standard_normal(w.shape)
                for w in layer.get_weights()
            ]
        )
    return model


def seen(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns all layers' outputs, computed by Keras."""
    names = ["linear", "norm", "relu", "logits"]
    watched = keras.Model(model.input, [model.get_layer(name).output for name in names])
    return dict(zip(names, [t.numpy() for t in watched(images, training=False)], strict=True))


def pictures() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_every_layer_is_what_it_was(kind: str, bias: bool, affine: bool) -> None:
    """Logits and the outputs of all three layers, alone or together."""
    normalization = layers.BatchNormalization(center=affine, scale=affine, name="norm")
    model = build(LINEAR[kind](use_bias=bias), normalization)
    images = pictures()
    expected = seen(model, images)
    network = KerasNetwork(model)
    assert not np.allclose(seen(model, images)["linear"], expected["linear"])  # it is folded
    for names in ([], ["linear"], ["norm"], ["relu"], ["relu", "linear", "norm"]):
        found, logits = network.compute(tf.constant(images), names)
        np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-4)
        for name, one in zip(names, found, strict=True):
            np.testing.assert_allclose(one, expected[name], rtol=1e-4, atol=1e-4)


def test_gradients_go_through_a_layer_that_is_asked_for() -> None:
    """The derivative by the linear layer's output is that of Keras."""
    model = build(LINEAR["conv"]())
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    images = pictures()
    watched = keras.Model(twin.input, [twin.get_layer("linear").output, twin.output])
    with tf.GradientTape() as tape:
        activation, logits = watched(images, training=False)
        score = tf.reduce_sum(logits[:, 1])
    expected = tape.gradient(score, activation)
    network = KerasNetwork(model)

    def gradient(images: tf.Tensor) -> tf.Tensor:
        (shown,), logits = network.compute(images, ["linear"])
        return tf.gradients(tf.reduce_sum(logits[:, 1]), shown)[0]

    compiled = tf.function(gradient, autograph=False)
    np.testing.assert_allclose(compiled(images), expected, rtol=1e-4, atol=1e-6)


class _OwnNormalization(keras.layers.BatchNormalization):
    def call(self, inputs: tf.Tensor, **more: object) -> tf.Tensor:
        return 2 * super().call(inputs, **more)


def _without_a_channel() -> keras.Model:
    model = build(LINEAR["conv"]())
    norm = model.get_layer("norm")
    norm.gamma.assign([0, 1, 1, 1, 1, 1])
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(LINEAR["conv"](activation="relu")),
        lambda: build(LINEAR["conv"](), ending="also used by others"),
        lambda: build(LINEAR["conv"](), _OwnNormalization(name="norm")),
        lambda: build(LINEAR["conv"](), layers.BatchNormalization(axis=1, name="norm")),
        _without_a_channel,
    ],
    ids=["not linear", "also used by others", "of the user's", "another axis", "channel off"],
)
def test_what_cannot_be_folded_stays(make: Callable[[], keras.Model]) -> None:
    """Its outputs do not change."""
    model = make()
    images = pictures()
    expected = seen(model, images)
    network = KerasNetwork(model)
    np.testing.assert_array_equal(seen(model, images)["linear"], expected["linear"])
    (linear,), logits = network.compute(tf.constant(images), ["linear"])
    np.testing.assert_allclose(linear, expected["linear"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5, atol=1e-5)
