"""A user's own model from transfer learning is saved, served and explained from the shell."""

import json
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gradcam_client import Client
from support.server import GRADCAM, RunningServer

LAYER = "mobilenetv2/out_relu"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as in Keras' guide on transfer learning: a nested base, pooling, a softmax head."""
    keras.utils.set_random_seed(1)
    base = keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), include_top=False, weights=None, name="mobilenetv2"
    )
    base.trainable = False
    model = keras.Sequential(
        [
            base,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.build((None, 96, 96, 3))
    folder = tmp_path_factory.mktemp("model")
    (folder / "pets.txt").write_text("cat\ndog\nhamster\n")
    model.save(folder / "pets.keras")
    return folder / "pets.keras"


@pytest.fixture
def photo(images: Path, tmp_path: Path) -> Path:
    """A photograph of the model's input size: random weights amplify differences of resizers."""
    Image.open(images / "cat.jpg").convert("RGB").resize((96, 96)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def expected_map(model_file: Path, photo: Path, index: int) -> np.ndarray:
    """Grad-CAM of the logit, computed by hand from the base and the head's weights."""
    model = keras.models.load_model(model_file)
    pixels = np.asarray(Image.open(photo), np.float32)[None] / 127.5 - 1
    activation = model.layers[0](tf.constant(pixels), training=False).numpy()[0]
    weights = model.layers[-1].get_weights()[0][:, index] / (
        activation.shape[0] * activation.shape[1]
    )
    return np.maximum(activation @ weights, 0)


def test_a_nested_model_is_served_by_path_names_and_labels(model_file: Path, photo: Path) -> None:
    """Served with declared preprocessing; the nested layer is found by path and by name."""
    server = RunningServer(
        *("--model", f"pets={model_file}", "--preprocessing", "tf"),
        *("--labels", str(model_file.with_name("pets.txt"))),
        *("--compiler", "tensorflow", "--batch-sizes", "1"),
    )
    try:
        server.wait_ready()
        with Client(server.address) as client:
            model = client.get_model()
            assert (model.name, model.class_count, model.input_height) == ("pets", 3, 96)
            assert model.default_layer == LAYER
            assert [one.name for one in model.classes] == ["cat", "dog", "hamster"]
            assert not model.random_weights
            default = client.explain(photo, classes=["dog"]).explanations[0]
            expected = expected_map(model_file, photo, 1)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(default.heatmap, expected, rtol=1e-3, atol=1e-4 * scale)
            by_name = client.explain(photo, classes=["dog"], layers="out_relu").explanations[0]
            assert by_name.layer == LAYER
            np.testing.assert_array_equal(by_name.heatmap, default.heatmap)
            deeper = client.explain(photo, layers="block_6_expand_relu").explanations[0]
            assert deeper.layer == "mobilenetv2/block_6_expand_relu"
            probabilities = [p.probability for p in client.explain(photo).predictions]
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    finally:
        server.kill()


def test_the_same_from_the_shell(model_file: Path, images: Path) -> None:
    """``gradcam layers`` and ``gradcam explain`` take the file as ``serve`` does."""
    model = ("--model", f"pets={model_file}")
    table = subprocess.run(
        [GRADCAM, "layers", *model], capture_output=True, text=True, check=True
    ).stdout
    (default,) = [line for line in table.splitlines() if line.rstrip().endswith("default")]
    assert default.split()[0] == LAYER
    options = ("--preprocessing", "tf", "--labels", str(model_file.with_name("pets.txt")))
    ended = subprocess.run(
        [GRADCAM, "explain", images / "cat.jpg", *model, *options, "--json", "--class", "hamster"],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(ended.stdout)
    assert answer["model"] == "pets"
    assert answer["explanations"][0]["name"] == "hamster"
    assert answer["explanations"][0]["layer"] == LAYER
