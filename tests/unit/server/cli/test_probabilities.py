"""Commands report the model's own probabilities."""

import logging
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from gradcam_server.cli.common import ALL_CLASSES, probabilities_of
from gradcam_server.cli.local import LocalClient
from gradcam_server.cli.model_access import ModelAccess
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Compiler

SIZE = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, keras.Model]:
    """A mean of sigmoids, which need not sum to 1."""
    keras.utils.set_random_seed(1)
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 128)(image))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Average()([layers.Dense(3, "sigmoid")(x) for _ in "ab"]))
    path = tmp_path_factory.mktemp("model") / "m.keras"
    model.save(path)
    return path, model


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def test_probabilities_are_the_models_own(
    model: tuple[Path, keras.Model], pixels: np.ndarray
) -> None:
    """They are not a softmax of the logits: the model may have another activation."""
    path, original = model
    config = ServeConfig(
        model=(f"small={path}",), compiler=Compiler.TENSORFLOW, batch_sizes=(1,), max_targets=1
    )
    with LocalClient(config) as client:
        (outcome,) = client.explain_stream([pixels], top_k=0, predictions=ALL_CLASSES)
    expected = original(pixels[None].astype(np.float32), training=False)[0]
    np.testing.assert_allclose(probabilities_of(outcome.unwrap()), expected, rtol=1e-4)


def test_a_warning_of_the_model_reaches_stderr(
    model: tuple[Path, keras.Model],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Commands in this process configure no log, but show warnings until an option answers them."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with ModelAccess(None, f"small={model[0]}", "imagenet", 0).open(1, 1):
        pass
    assert "m.keras: it cannot be told whether its outputs" in capsys.readouterr().err
    with ModelAccess(None, f"small={model[0]}", "imagenet", 0, outputs="probabilities").open(1, 1):
        pass
    assert "outputs" not in capsys.readouterr().err
