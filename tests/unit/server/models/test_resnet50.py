"""ResNet50 and the ways to its weights."""

from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from gradcam_server.errors import StartupError
from gradcam_server.models import load


@pytest.fixture(scope="module")
def original() -> keras.Model:
    return load("resnet50", "random", 5).network


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
    """Weights alone or a whole model with its softmax: what comes out are the logits."""
    save(original, tmp_path / name)
    loaded = load("resnet50", str(tmp_path / name))
    assert loaded.weights == f"file {name}"
    assert not loaded.random_weights
    expected = original(image, training=False)
    np.testing.assert_allclose(loaded.network(image, training=False), expected, rtol=1e-5)


def test_random_weights_are_seeded_and_say_so(original: keras.Model) -> None:
    """Equal seeds give equal networks; nobody takes them for trained ones."""
    again, other = load("resnet50", "random", 5), load("resnet50", "random", 6)
    assert again.random_weights
    assert again.weights == "random, seed 5"
    kernels = [network.get_weights()[0] for network in (original, again.network, other.network)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_missing_imagenet_weights_name_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without cache and network the error comes at once and says what to do."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", no_network)
    with pytest.raises(StartupError, match=r"--weights FILE.*efficientnet-lite0.*random"):
        load("resnet50", "imagenet")


@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5", "w.keras"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str) -> None:
    """The error names the file."""
    (tmp_path / name).write_text("these are no weights")
    with pytest.raises(StartupError, match=f"{name} do not fit resnet50"):
        load("resnet50", str(tmp_path / name))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """Nothing is loaded by halves."""
    path = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save_weights(path)
    with pytest.raises(StartupError, match="do not fit resnet50"):
        load("resnet50", str(path))


@pytest.mark.parametrize(
    ("weights", "message"), [("no/such.h5", "does not exist"), ("weights.pth", "must end in")]
)
def test_unusable_names_are_refused(weights: str, message: str) -> None:
    """A file that is not there, or of a kind that cannot be read."""
    with pytest.raises(StartupError, match=message):
        load("resnet50", weights)


def test_unknown_models_are_refused() -> None:
    """The error lists the models."""
    with pytest.raises(StartupError, match="unknown model 'vgg16'; the models are: resnet50, eff"):
        load("vgg16", "random")
