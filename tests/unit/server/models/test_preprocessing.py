"""Pixels to inputs, against Keras' own functions."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from keras.applications.imagenet_utils import preprocess_input

from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.models.preprocessing import preprocess

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3)).astype(np.uint8)


@pytest.mark.parametrize("mode", ["caffe", "torch", "tf"])
def test_the_modes_are_those_of_keras(mode: str) -> None:
    """The same names, the same values."""
    expected = preprocess_input(PIXELS.astype(np.float32), mode=mode)
    seen = preprocess(tf.constant(PIXELS), Preprocessing(mode))
    assert seen.dtype == tf.float32
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-5)


def test_none_leaves_the_pixels_alone() -> None:
    """They stay RGB from 0 to 255, as float32."""
    seen = preprocess(tf.constant(PIXELS), Preprocessing.NONE)
    assert seen.dtype == tf.float32
    np.testing.assert_array_equal(seen, PIXELS)


def test_lite_is_around_zero() -> None:
    """(x - 127) / 128."""
    seen = preprocess(tf.constant(PIXELS), Preprocessing.LITE)
    np.testing.assert_allclose(seen, (PIXELS.astype(np.float32) - 127) / 128)


def test_settings_need_no_tensorflow() -> None:
    """The names are known before the models are loaded, so that a wrong option fails at once."""
    code = (
        "import sys; from gradcam_server.config.models import model_specs;"
        "from gradcam_server.config.settings import ServeConfig;"
        "model_specs(ServeConfig());"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
