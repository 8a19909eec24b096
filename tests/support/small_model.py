"""A CNN that compiles quickly."""

import keras
import numpy as np

from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.loaded import LoadedModel

SIZE, CLASSES = 32, 6


def build_network() -> keras.Model:
    """A residual CNN with inference-mode BatchNorm: small, and not trivially linear."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((SIZE, SIZE, 3), name="image")
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="conv1")(inputs)
    x = keras.layers.BatchNormalization(name="bn1")(x)
    shortcut = keras.layers.ReLU(name="relu1")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2")(shortcut)
    x = keras.layers.Conv2D(8, 3, padding="same", name="conv3")(x)
    x = keras.layers.ReLU(name="block")(keras.layers.Add()([x, shortcut]))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(0.5)(x)
    network = keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(x))
    for layer in network.layers:
        layer.set_weights([np.abs(w) if w.ndim == 1 else 3 * w for w in layer.get_weights()])
    return network


def load_small() -> LoadedModel:
    """Returns that network, ready to be compiled."""
    labels = ClassLabels([ClassLabel(f"class {index}") for index in range(CLASSES)])
    return LoadedModel(
        "small", KerasNetwork(build_network()), Preprocessing.LITE, labels, "random", True
    )
