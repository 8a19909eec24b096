"""A usual script to explain one photograph: TensorFlow, a Keras model and an eager tape.

Usage: python benchmarks/peers/eager.py IMAGE MODEL TARGETS METHOD [METHOD ...]
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from gradcam_server.domain.requests import Method
from gradcam_server.methods.one_pass import METHODS
from gradcam_server.models import efficientnet_lite0
from gradcam_server.models.torch_checkpoint import read_torch_checkpoint

_LAYERS = {"efficientnet-lite0": "top_activation", "resnet50": "conv5_block3_out"}


def main() -> None:
    path, name, target_count, *methods = sys.argv[1:]
    image = tf.image.decode_jpeg(tf.io.read_file(path), channels=3)
    pixels = tf.image.resize(image, (224, 224), antialias=True)[None]
    if name == "efficientnet-lite0":
        weights = read_torch_checkpoint(efficientnet_lite0.default_checkpoint())
        model, inputs = efficientnet_lite0.build(weights), (pixels - 127.0) / 128.0
    else:
        model = keras.applications.ResNet50(weights=None, classifier_activation=None)
        inputs = keras.applications.resnet50.preprocess_input(pixels)
    layer = model.get_layer(_LAYERS[name])
    both = keras.Model(model.input, [layer.output, model.output])
    with tf.GradientTape(persistent=True) as tape:
        activation, logits = both(inputs, training=False)
        best = tf.math.top_k(logits[0], int(target_count)).indices
        scores = [logits[0, index] for index in best]
    for index, score in zip(best, scores, strict=True):
        gradient = tape.gradient(score, activation)
        for method in methods:
            heatmap = METHODS[Method(method)](activation, gradient).numpy()[0]
            print(int(index), float(score), method, np.ptp(heatmap))


if __name__ == "__main__":
    main()
