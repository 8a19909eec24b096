"""Scales RGB pixels as a network was trained, by operations of the graph."""

import tensorflow as tf

from gradcam_server.domain.preprocessing import Preprocessing


def preprocess(images: tf.Tensor, how: Preprocessing, *, keep_order: bool = False) -> tf.Tensor:
    """Scales a batch of pixels.

    Args:
        images: RGB from 0 to 255, uint8 or float32, shape (B, H, W, 3).
        how: ``none``: RGB from 0 to 255; the network scales pixels itself.
            ``caffe``, ``torch``, ``tf``: the modes of
            ``keras.applications.imagenet_utils.preprocess_input``: BGR minus the ImageNet
            mean; RGB from 0 to 1, minus the mean, by the standard deviation; RGB from -1 to 1.
            ``lite``: (x - 127) / 128, as EfficientNet-Lite was trained.
        keep_order: Whether to give RGB also to a network that takes BGR: it reverses its weights.

    Returns:
        float32, shape (B, H, W, 3).
    """
    pixels = tf.cast(images, tf.float32)
    match how:
        case Preprocessing.NONE:
            return pixels
        case Preprocessing.CAFFE:
            mean = [103.939, 116.779, 123.68]
            if keep_order:
                return pixels - tf.constant(mean[::-1])
            # Not tf.gather or a concatenation: OpenVINO moves these into the weights after them,
            # and loses them when it saves or quantises the model.
            return pixels[..., ::-1] - tf.constant(mean)
        case Preprocessing.TORCH:
            mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            return (pixels / 255.0 - tf.constant(mean)) / tf.constant(deviation)
        case Preprocessing.TF:
            return pixels / 127.5 - 1.0
        case Preprocessing.LITE:
            return (pixels - 127.0) / 128.0
