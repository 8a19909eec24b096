"""From uint8 RGB pixels to what a network was trained on, as operations of the graph."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


class Preprocessing(StrEnum):
    """How pixel values are scaled before the network."""

    NONE = "none"
    CAFFE = "caffe"
    TORCH = "torch"
    TF = "tf"
    LITE = "lite"


# What models from files were trained with, most often.
LIKELY = (Preprocessing.NONE, Preprocessing.TF, Preprocessing.TORCH, Preprocessing.CAFFE)

UNDECLARED = (
    "%s: no preprocessing is declared, and no layer of the model scales pixels, so it is given RGB "
    "from 0 to 255. If it was trained on other values, its answers are wrong, however confident "
    "they are. Declare what it was trained with: --preprocessing tf (RGB from -1 to 1), torch (RGB "
    "from 0 to 1, minus ImageNet's mean, divided by its standard deviation), caffe (BGR minus "
    "ImageNet's mean) or none (RGB from 0 to 255: this warning ends). Other scales, such as RGB "
    "from 0 to 1, need a Rescaling layer in the model."
)

# The RGB colour that becomes zero; where the network scales by itself, the usual mean.
ZERO_COLORS = {
    Preprocessing.NONE: (123.68, 116.779, 103.939),
    Preprocessing.CAFFE: (123.68, 116.779, 103.939),
    Preprocessing.TORCH: (123.675, 116.28, 103.53),
    Preprocessing.TF: (127.5, 127.5, 127.5),
    Preprocessing.LITE: (127.0, 127.0, 127.0),
}


def takes_bgr(how: Preprocessing) -> bool:
    """Returns whether the network was trained on BGR."""
    return how is Preprocessing.CAFFE


def preprocess(images: tf.Tensor, how: Preprocessing, *, keep_order: bool = False) -> tf.Tensor:
    """Scales a batch of pixels.

    Args:
        images: uint8 RGB, shape (B, H, W, 3).
        how: ``none``: RGB from 0 to 255; the network scales them itself.
            ``caffe``, ``torch``, ``tf``: the modes of
            ``keras.applications.imagenet_utils.preprocess_input``: BGR minus the ImageNet
            mean; RGB from 0 to 1, minus the mean, by the standard deviation; RGB from -1 to 1.
            ``lite``: (x - 127) / 128, as EfficientNet-Lite was trained.
        keep_order: RGB also for a network that takes BGR, which must turn its weights.

    Returns:
        float32, shape (B, H, W, 3).
    """
    # Here, because the settings need the names above before TensorFlow is imported.
    import tensorflow as tf

    pixels = tf.cast(images, tf.float32)
    match how:
        case Preprocessing.NONE:
            return pixels
        case Preprocessing.CAFFE:
            mean = [103.939, 116.779, 123.68]
            if keep_order:
                return pixels - tf.constant(mean[::-1])
            # Not tf.gather or a concatenation: OpenVINO moves these into the weights behind, and
            # loses them when it saves or quantises that.
            return pixels[..., ::-1] - tf.constant(mean)
        case Preprocessing.TORCH:
            mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            return (pixels / 255.0 - tf.constant(mean)) / tf.constant(deviation)
        case Preprocessing.TF:
            return pixels / 127.5 - 1.0
        case Preprocessing.LITE:
            return (pixels - 127.0) / 128.0
