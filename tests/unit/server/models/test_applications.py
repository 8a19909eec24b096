"""Models of keras.applications, and the sources of their weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format

from gradcam_server.domain.layers import default_layer
from gradcam_server.domain.model_spec import BUILT_IN, EMBEDDED, ModelSpec
from gradcam_server.errors import StartupError
from gradcam_server.models.applications import APPLICATIONS, build
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.loading import load
from gradcam_server.models.preprocessing import preprocess


def resnet50(weights: str, seed: int = 0) -> LoadedModel:
    return load(ModelSpec("resnet50", "resnet50", weights, seed))


def logits_of(model: LoadedModel, image: np.ndarray) -> np.ndarray:
    return model.network.compute(tf.constant(image), [])[1].numpy()


@pytest.fixture(scope="module")
def original() -> keras.Model:
    return build("resnet50", "random", 5)[0]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32) * 50


def with_softmax(network: keras.Model) -> keras.Model:
    whole = keras.applications.ResNet50(weights=None)
    whole.set_weights(network.get_weights())
    return whole


def save_legacy_weights(network: keras.Model, path: Path) -> None:
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("w.weights.h5", lambda network, path: network.save_weights(path)),
        ("w.h5", save_legacy_weights),  # the format of Keras' own ImageNet file
        ("whole.keras", lambda network, path: with_softmax(network).save(path)),
        ("whole.h5", lambda network, path: with_softmax(network).save(path)),
    ],
)
def test_every_kind_of_file_gives_the_same_logits(
    original: keras.Model,
    image: np.ndarray,
    tmp_path: Path,
    name: str,
    save: Callable[[keras.Model, Path], None],
) -> None:
    """Weights alone and a whole model with its softmax both give the logits."""
    save(original, tmp_path / name)
    loaded = resnet50(str(tmp_path / name))
    assert loaded.weights == f"file {name}"
    assert not loaded.random_weights
    expected = original(image, training=False)
    np.testing.assert_allclose(logits_of(loaded, image), expected, rtol=1e-4, atol=1e-4)


def test_random_weights_are_seeded_and_say_so(original: keras.Model, image: np.ndarray) -> None:
    """Equal seeds give equal networks, which say that their weights are random."""
    again, other = resnet50("random", 5), resnet50("random", 6)
    assert again.random_weights
    assert again.weights == "random, seed 5"
    expected = original(image, training=False)
    np.testing.assert_allclose(logits_of(again, image), expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(logits_of(other, image), expected, rtol=0.1)


def test_missing_imagenet_weights_name_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without cache and network the error comes at once and names the remedies."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", no_network)
    with pytest.raises(StartupError, match=r"--weights FILE.*efficientnet-lite0.*random"):
        resnet50("imagenet")


@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5", "w.keras"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str) -> None:
    """The error names the file."""
    (tmp_path / name).write_text("these are no weights")
    with pytest.raises(StartupError, match=f"{name} do not fit resnet50"):
        resnet50(str(tmp_path / name))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """No part of them is loaded."""
    path = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save_weights(path)
    with pytest.raises(StartupError, match="do not fit resnet50"):
        resnet50(str(path))


@pytest.mark.parametrize(
    ("weights", "message"), [("no/such.h5", "does not exist"), ("weights.pth", "must end in")]
)
def test_unusable_names_are_refused(weights: str, message: str) -> None:
    """A missing file, and one of an unreadable kind."""
    with pytest.raises(StartupError, match=message):
        resnet50(weights)


def test_unknown_models_are_refused() -> None:
    """The error lists the models."""
    with pytest.raises(StartupError, match="unknown model 'vgg61'; the models are: resnet50, eff"):
        load(ModelSpec("vgg61", "vgg61", "random"))


LAST = {
    "resnet50": "conv5_block3_out",
    "resnet50v2": "post_relu",
    "mobilenetv2": "out_relu",
    "efficientnetb0": "top_activation",
    "densenet121": "relu",
    "vgg16": "block5_pool",
    "inceptionv3": "mixed10",
    "xception": "block14_sepconv2_act",
    "convnexttiny": "add_17",
}
MODULES = {
    "resnet50": "resnet50",
    "resnet50v2": "resnet_v2",
    "mobilenetv2": "mobilenet_v2",
    "efficientnetb0": "efficientnet",
    "densenet121": "densenet",
    "vgg16": "vgg16",
    "inceptionv3": "inception_v3",
    "xception": "xception",
    "convnexttiny": "convnext",
}


@pytest.fixture(scope="module", params=APPLICATIONS)
def application(request: pytest.FixtureRequest) -> tuple[str, LoadedModel, Callable[..., Any]]:
    """A built-in model with random weights, and Keras' model, which ends in softmax."""
    name = request.param
    own: list[keras.Model] = []
    original = APPLICATIONS[name]

    def remember(**options: Any) -> keras.Model:
        own.append(original.build(**options))
        return own[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(APPLICATIONS, name, original._replace(build=remember))
        loaded = load(ModelSpec("mine", name, "random"))
    return name, loaded, own[0]


def test_every_application_is_known() -> None:
    """By name, without TensorFlow."""
    assert set(APPLICATIONS) | {EMBEDDED} == set(BUILT_IN)


def test_applications_give_logits_and_gradients(
    application: tuple[str, LoadedModel, Callable[..., Any]],
) -> None:
    """Keras' own logits; the default layer is the last before the pooling, and is connected."""
    name, loaded, own = application
    network = loaded.network
    layer = default_layer(network.layers)
    assert layer == LAST[name]
    assert (loaded.name, network.class_count, len(loaded.labels)) == ("mine", 1000, 1000)
    size = 299 if name in {"inceptionv3", "xception"} else 224
    assert loaded.input_size == (size, size)
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8)
    inputs = preprocess(tf.constant(pixels), loaded.preprocessing)

    def explain(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        (activation,), logits = network.compute(inputs, [layer])
        return logits, tf.gradients(logits[:, 7], activation)[0]

    logits, gradient = tf.function(explain, autograph=False)(inputs)
    np.testing.assert_allclose(logits, own(inputs, training=False), rtol=1e-4, atol=1e-4)
    assert not np.allclose(np.sum(logits), 1)  # They are no probabilities.
    assert np.isfinite(gradient).all()
    assert np.any(gradient)


def test_applications_preprocess_as_keras_does(
    application: tuple[str, LoadedModel, Callable[..., Any]],
) -> None:
    """The oracle is the preprocessing function of each Keras module."""
    name, loaded, _ = application
    module = getattr(keras.applications, MODULES[name])
    pixels = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    expected = module.preprocess_input(pixels.astype(np.float32))
    seen = preprocess(tf.constant(pixels), loaded.preprocessing)
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-5)


def test_built_in_models_have_one_size() -> None:
    """A size that their trained head cannot take is refused."""
    with pytest.raises(StartupError, match="takes images of 224x224"):
        load(ModelSpec("m", "mobilenetv2", "none", input_size=(96, 96)))
