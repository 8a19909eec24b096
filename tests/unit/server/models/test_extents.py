"""The part of the image that each layer's map covers, in models that crop, pad and resize."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from gradcam_server.domain.layers import Extent
from gradcam_server.domain.requests import ResizeMode
from gradcam_server.images.geometry import fit
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.saved_model_network import SavedModelNetwork

HEIGHT, WIDTH = 96, 80
SQUARE = (slice(44, 60), slice(40, 56))
WHOLE = Extent(0, 0, HEIGHT, WIDTH)


def red_square() -> np.ndarray:
    """A red square on grey."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    image[SQUARE] = 255, 0, 0
    return image


@keras.saving.register_keras_serializable("test_extents")
class OwnCrop(layers.Layer):
    """A user's layer: no weights, and no name that the server knows."""

    def call(self, images: Any) -> Any:
        """Crops."""
        return images[:, 24:72, 16:64]


@keras.saving.register_keras_serializable("test_extents")
class CropWindow(layers.Layer):
    """A layer that crops and resizes by boxes made for each image."""

    def call(self, images: Any) -> Any:
        """Crops."""
        boxes = tf.tile([[24 / 95, 16 / 79, 71 / 95, 63 / 79]], (tf.shape(images)[0], 1))
        return tf.image.crop_and_resize(images, boxes, tf.range(tf.shape(images)[0]), (48, 48))

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the window's."""
        return (shape[0], 48, 48, shape[3])


@keras.saving.register_keras_serializable("test_extents")
class OwnStem(layers.Layer):
    """A user's layer that crops and convolves."""

    def build(self, shape: tuple[int, ...]) -> None:
        """Makes the convolution."""
        self.convolution = redness()
        super().build(shape)

    def call(self, images: Any) -> Any:
        """Crops, and sees red."""
        return self.convolution(images[:, 24:72, 16:64])

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the crop's."""
        return (shape[0], 48, 48, 3)


def nested(inputs: Any) -> Any:
    inner = keras.Sequential([keras.Input((HEIGHT, WIDTH, 3)), layers.CenterCrop(48, 40)])
    outer = keras.Sequential([keras.Input((HEIGHT, WIDTH, 3)), inner])
    return outer(inputs)


# What a model may begin with, and the rectangle that is left of the image, by hand.
BEGINNINGS: dict[str, tuple[Callable[[Any], Any], Extent]] = {
    "centre crop": (lambda x: layers.CenterCrop(48, 40)(x), Extent(24, 20, 48, 40)),
    "cropping": (layers.Cropping2D(((30, 10), (5, 15))), Extent(30, 5, 56, 60)),
    "padding": (layers.ZeroPadding2D(((20, 4), (0, 12))), Extent(-20, 0, 120, 92)),
    "resizing": (lambda x: layers.Resizing(48, 48)(x), WHOLE),
    "nearest": (lambda x: layers.Resizing(64, 60, interpolation="nearest")(x), WHOLE),
    "resizing with padding": (
        lambda x: layers.Resizing(48, 48, pad_to_aspect_ratio=True)(x),
        Extent(0, -8, 96, 96),
    ),
    "resizing with a crop": (
        lambda x: layers.Resizing(40, 40, crop_to_aspect_ratio=True)(x),
        Extent(8, 0, 80, 80),
    ),
    "nested": (nested, Extent(24, 20, 48, 40)),
    "slicing": (lambda x: x[:, 20:70, 10:60], Extent(20, 10, 50, 50)),
    "every second pixel": (lambda x: x[:, 32:80:2, 20:68:2], Extent(31.5, 19.5, 48, 48)),
    "operations": (
        lambda x: ops.image.resize(ops.image.crop_images(x, 24, 16, 24, 16), (24, 24)),
        Extent(24, 16, 48, 48),
    ),
    "mirrored padding": (
        lambda x: ops.pad(x, ((0, 0), (20, 0), (8, 8), (0, 0)), mode="reflect"),
        Extent(-20, -8, 116, 96),
    ),
    "padding then crop": (
        lambda x: layers.Cropping2D(((0, 32), (0, 0)))(layers.ZeroPadding2D(((32, 0), (0, 0)))(x)),
        Extent(-32, 0, 96, 80),
    ),
    "scaling before": (
        lambda x: layers.CenterCrop(48, 40)(layers.Rescaling(1 / 127.5, offset=-1)(x)),
        Extent(24, 20, 48, 40),
    ),
    "standardised before": (
        lambda x: layers.CenterCrop(48, 40)(x - ops.mean(x, axis=(1, 2, 3), keepdims=True)),
        Extent(24, 20, 48, 40),
    ),
    "own layer": (lambda x: OwnCrop()(x), Extent(24, 16, 48, 48)),
    "own stem": (lambda x: OwnStem()(x), Extent(24, 16, 48, 48)),
    "own window": (lambda x: CropWindow()(x), Extent(24, 16, 48, 48)),
    "behind a convolution": (
        lambda x: layers.CenterCrop(48, 40)(redness()(x)),
        Extent(24, 20, 48, 40),
    ),
}


def redness() -> layers.Layer:
    """A convolution whose first channel is the redness of a position; twice is the same."""
    layer = layers.Conv2D(3, 3, padding="same", use_bias=False)
    layer.build((None, None, None, 3))
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[1, 1, :, 0] = 1, -0.5, -0.5
    layer.set_weights([kernel])
    return layer


def model_of(begin: Callable[[Any], Any], dtype: str = "float32") -> keras.Model:
    """A model of redness after the given first layers."""
    inputs = keras.Input((HEIGHT, WIDTH, 3), dtype=dtype)
    x = layers.AveragePooling2D(4, padding="same", name="last")(redness()(begin(inputs)))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, kernel_initializer="identity")(x))


def explain(network: Any, pixels: np.ndarray) -> tuple[np.ndarray, Extent | None]:
    """Explains class 0 at the last layer, by the paper's formula."""
    info = [one for one in network.layers if one.explainable][-1]

    @tf.function(autograph=False)
    def run(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        (activation,), logits = network.compute(images, [info.name])
        (gradient,) = tf.gradients(logits[:, 0], activation)
        return activation, gradient

    activation, gradient = (one.numpy()[0] for one in run(tf.constant(pixels[None], tf.float32)))
    weights = gradient.mean(axis=(0, 1))
    return np.maximum(activation @ weights, 0), info.extent


def on_image(heatmap: np.ndarray, extent: Extent | None) -> np.ndarray:
    placement = fit(red_square(), (HEIGHT, WIDTH), ResizeMode.STRETCH)[1]
    return placement.map_to_image(heatmap.astype(np.float32), extent)


def pasted(heatmap: np.ndarray, extent: Extent) -> np.ndarray:
    """The oracle: the map enlarged by OpenCV to its rectangle and pasted there."""
    top, left, height, width = (
        round(one) for one in (extent.top, extent.left, extent.height, extent.width)
    )
    large = cv2.resize(heatmap.astype(np.float32), (width, height))
    canvas = np.zeros((3 * HEIGHT, 3 * WIDTH), np.float32)
    canvas[HEIGHT + top :, WIDTH + left :][:height, :width] = large
    return canvas[HEIGHT : 2 * HEIGHT, WIDTH : 2 * WIDTH]


def share_on_square(heat: np.ndarray) -> float:
    return float(heat[SQUARE].sum() / heat.sum())


def as_saved_model(model: keras.Model, folder: Path) -> SavedModelNetwork:
    module = tf.Module()
    module.model = model
    call = tf.function(lambda images: {"scores": model(images, training=False)}, autograph=False)
    images = tf.TensorSpec((None, HEIGHT, WIDTH, 3), model.inputs[0].dtype)
    tf.saved_model.save(module, str(folder), call.get_concrete_function(images))
    return SavedModelNetwork(folder)


def check_gradient(network: Any) -> None:
    """Compares the extent of the last map with the box of the pixels on which it depends."""
    extent = next(one.extent for one in network.layers if one.name == "last") or WHOLE
    images = tf.random.stateless_uniform((1, HEIGHT, WIDTH, 3), (1, 2))
    with tf.GradientTape() as tape:
        tape.watch(images)
        (activation,), _ = network.compute(images, ["last"])
    gradient = np.abs(tape.gradient(activation, images).numpy()[0]).sum(axis=-1)
    for axis, (start, length, size) in enumerate(
        [(extent.top, extent.height, HEIGHT), (extent.left, extent.width, WIDTH)]
    ):
        reached = np.flatnonzero((gradient > 1e-4 * gradient.max()).any(axis=1 - axis))
        assert reached.min() == pytest.approx(max(start, 0), abs=2)
        assert reached.max() + 1 == pytest.approx(min(start + length, size), abs=2)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    texts = [record.getMessage() for record in caplog.records]
    return [text for text in texts if "wrong place" in text]


def check_heat(network: Any, expected: Extent) -> None:
    """Compares the heat with that of the rectangle by hand."""
    heatmap, extent = explain(network, red_square())
    found = extent or WHOLE
    for edge in ("top", "left", "height", "width"):
        assert getattr(found, edge) == pytest.approx(getattr(expected, edge), abs=0.3), edge
    share = share_on_square(on_image(heatmap, extent))
    assert share == pytest.approx(share_on_square(pasted(heatmap, expected)), abs=0.02)
    assert share > 0.5


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_heat_lies_on_what_the_model_saw(beginning: str, caplog: pytest.LogCaptureFixture) -> None:
    """A Keras model's own crops, pads and resizes are undone: heat lies on the red square.

    Within the image an extent is also the box of the pixels by which the map has a gradient.
    """
    begin, expected = BEGINNINGS[beginning]
    with caplog.at_level(logging.WARNING, "gradcam_server"):
        network = KerasNetwork(model_of(begin))
    assert not warnings(caplog)
    check_heat(network, expected)
    check_gradient(network)


@pytest.mark.parametrize(
    "beginning",
    ["centre crop", "padding", "resizing with padding", "own window", "behind a convolution"],
)
def test_heat_of_a_saved_model_lies_on_what_it_saw(
    beginning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same by operations alone."""
    begin, expected = BEGINNINGS[beginning]
    with caplog.at_level(logging.WARNING, "gradcam_server"):
        network = as_saved_model(model_of(begin), tmp_path)
    assert not warnings(caplog)
    check_heat(network, expected)


def test_a_random_crop_covers_what_keras_makes_of_it() -> None:
    """In inference it crops the centre or nothing, depending on Keras' version."""
    check_gradient(KerasNetwork(model_of(lambda x: layers.RandomCrop(48, 40)(x))))


@pytest.mark.parametrize(
    ("dtype", "policy", "tolerance"),
    [
        ("uint8", "float32", 0.5),
        ("float16", "float16", 0.5),
        ("float32", "mixed_float16", 0.5),
        ("float32", "mixed_bfloat16", 2),
    ],
)
def test_coarse_types_show_positions_too(
    dtype: str, policy: str, tolerance: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The rectangle is found, to within the digits of a type, and nothing is warned of."""

    def begin(x: Any) -> Any:
        x = layers.Rescaling(1 / 127.5, offset=-1, dtype=policy)(x)
        return layers.CenterCrop(48, 40, dtype=policy)(x)

    network = KerasNetwork(model_of(begin, dtype))
    assert not warnings(caplog)
    by_name = {one.name: one.extent for one in network.layers}
    assert by_name["last"] is not None
    assert by_name["last"].top == pytest.approx(24, abs=tolerance)
    assert by_name["last"].width == pytest.approx(40, abs=tolerance)
    assert [one.extent for one in network.layers if one.type == "Rescaling"] == [None]


class OwnFlip(layers.Layer):
    """A user's layer that flips."""

    def call(self, images: Any) -> Any:
        """Flips."""
        return images[:, ::-1]


class Glimpse(layers.Layer):
    """A user's layer that moves the image by numbers computed from it."""

    def call(self, images: Any, by: Any) -> Any:
        """Moves."""
        return images * by[:, None, None]


def two_crops(x: Any) -> Any:
    return layers.Add()([x[:, :48, :40], x[:, 48:, 40:]])


def glimpse(x: Any) -> Any:
    by = layers.GlobalAveragePooling2D()(redness()(x))
    return Glimpse()(x, by)


UNFOLLOWED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "flip": (lambda x: ops.flip(x, axis=2), "flip moves pixels"),
    "own flip": (lambda x: OwnFlip()(x), "own_flip moves pixels"),
    "transposed": (lambda x: ops.transpose(x, (0, 2, 1, 3)), "transpose moves pixels"),
    "rolled": (lambda x: ops.roll(x, 30, axis=1), "roll moves pixels"),
    "warped": (
        lambda x: ops.image.affine_transform(x, np.array([0.9, 0.5, 0, -0.5, 0.9, 30, 0, 0.0])),
        "affine_transform moves pixels",
    ),
    "two parts": (two_crops, "add joins maps"),
    "by its content": (glimpse, "glimpse moves pixels by values computed from the image"),
}


@pytest.mark.parametrize("beginning", UNFOLLOWED)
def test_what_cannot_be_followed_is_warned_of(
    beginning: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning names the layer that flips, turns, warps or joins."""
    begin, expected = UNFOLLOWED[beginning]
    keras.backend.clear_session()  # Names begin anew.
    with caplog.at_level(logging.WARNING, "gradcam_server"):
        network = KerasNetwork(model_of(begin))
    (warning,) = warnings(caplog)
    assert expected in warning
    assert network.layers[-3].extent is None


def test_operations_that_cannot_be_followed_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A SavedModel's warning names the operation."""
    with caplog.at_level(logging.WARNING, "gradcam_server"):
        as_saved_model(model_of(lambda x: ops.flip(x, axis=2)), tmp_path)
    (warning,) = warnings(caplog)
    assert "ReverseV2 moves pixels" in warning


def padded_convolution(x: Any) -> Any:
    """The first layers of the ResNets of keras.applications."""
    x = layers.ZeroPadding2D(3)(x)
    x = layers.Conv2D(4, 7, strides=2)(x)
    return layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))


def shifted_by_one(x: Any) -> Any:
    """NASNet's reduction of a map: two poolings, one of them shifted by a position."""
    x = layers.Conv2D(4, 3, strides=2)(x)
    shifted = layers.Cropping2D(((1, 0), (1, 0)))(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
    pools = [layers.AveragePooling2D(1, strides=2)(one) for one in (x, shifted)]
    return layers.Concatenate()([layers.Conv2D(4, 1)(one) for one in pools])


def squeezed(x: Any) -> Any:
    """EfficientNet's weighting of channels, and a decoder's join of maps of two sizes."""
    x = layers.Conv2D(4, 3, strides=2, padding="same")(layers.Rescaling(1 / 255)(x))
    weights = layers.Reshape((1, 1, 4))(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([x, layers.Conv2D(4, 1, activation="sigmoid")(weights)])
    small = layers.AveragePooling2D(2)(x)
    return layers.Add()([x, layers.UpSampling2D(2, interpolation="bilinear")(small)])


def normalised(x: Any) -> Any:
    """A normalisation, which hides positions from the probe and moves none."""
    standardised = (x - ops.mean(x, axis=(1, 2), keepdims=True)) / (ops.std(x) + 1e-3)
    scaled = x / (ops.max(x, axis=(1, 2, 3), keepdims=True) + 1e-3)
    x = layers.Concatenate()([ops.clip(x, 0, 1), standardised, scaled, ops.ones_like(x)])
    return layers.Conv2D(4, 3)(x)


@pytest.mark.parametrize("begin", [padded_convolution, shifted_by_one, squeezed, normalised])
@pytest.mark.parametrize("kind", ["keras", "saved_model"])
def test_maps_of_convolutions_cover_the_whole_input(
    begin: Callable[[Any], Any], kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Padding for windows, strides and joins of whole maps change nothing, and warn of nothing."""
    inputs = keras.Input((HEIGHT, WIDTH, 3))
    x = layers.GlobalAveragePooling2D()(begin(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    with caplog.at_level(logging.WARNING, "gradcam_server"):
        network = KerasNetwork(model) if kind == "keras" else as_saved_model(model, tmp_path)
    assert not warnings(caplog)
    types = {one.type for one in network.layers if one.extent}
    assert types <= ({"ZeroPadding2D", "Pad"} if begin is shifted_by_one else set())
