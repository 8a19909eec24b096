"""From uint8 RGB pixels to what a network was trained on, as operations of the graph."""

from enum import StrEnum

import tensorflow as tf


class Preprocessing(StrEnum):
    """How pixel values are scaled before the network."""

    CAFFE = "caffe"
    LITE = "lite"


def preprocess(images: tf.Tensor, how: Preprocessing) -> tf.Tensor:
    """Scales a batch of pixels.

    Args:
        images: uint8 RGB, shape (B, H, W, 3).
        how: ``caffe``: BGR minus the ImageNet mean, as ``keras.applications.resnet``.
            ``lite``: (x - 127) / 128, as EfficientNet-Lite was trained.

    Returns:
        float32, shape (B, H, W, 3).
    """
    pixels = tf.cast(images, tf.float32)
    match how:
        case Preprocessing.CAFFE:
            return pixels[..., ::-1] - tf.constant([103.939, 116.779, 123.68])
        case Preprocessing.LITE:
            return (pixels - 127.0) / 128.0
