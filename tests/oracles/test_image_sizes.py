"""Sizes of image files against TensorFlow's decoders."""

import pytest
import tensorflow as tf

from gradcam_server.images.header import read_header
from support.image_variants import variants

# TensorFlow reads neither WebP nor these BMP files: old, or with more between header and pixels.
NOT_READ = ("webp", "bmp-os2", "bmp-gap", "bmp-palette", "bmp-v5")


@pytest.mark.parametrize(
    "data",
    [pytest.param(data, id=name) for name, data in variants() if not name.startswith(NOT_READ)],
)
def test_sizes_are_those_that_tensorflow_decodes(data: bytes) -> None:
    """The header's size is that of the decoded image, with any metadata."""
    decoded = tf.io.decode_image(data, channels=0 if data[:2] == b"BM" else 3)
    assert read_header(data).size == tuple(decoded.shape[:2])
