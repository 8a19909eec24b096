"""Answers by each likely preprocessing, which show the one that a model was trained with."""

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradcam_server.domain.preprocessing import LIKELY, Preprocessing
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.network import PROBABILITIES
from gradcam_server.models.preprocessing import preprocess


def answer_by_likely_preprocessing(
    loaded: LoadedModel, image: NDArray[np.uint8]
) -> dict[Preprocessing, NDArray[np.float32]]:
    """Runs the network once, on an image scaled by each likely preprocessing.

    Args:
        loaded: The model; its own preprocessing is not used.
        image: RGB of the model's input size, uint8, shape (H, W, 3).

    Returns:
        Probabilities, float32, shape (classes,), by preprocessing.
    """
    network = loaded.network
    with tf.device(loaded.device):
        pixels = tf.constant(image[np.newaxis])
        batch = tf.concat([preprocess(pixels, how) for how in LIKELY], axis=0)
        _, logits = network.compute(batch, [])
        probabilities = PROBABILITIES[network.output_activation](logits)
    return dict(zip(LIKELY, probabilities.numpy(), strict=True))
