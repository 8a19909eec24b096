"""The key, inputs and outputs of a compiled graph, free of TensorFlow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.requests import Method, ScoreType

NO_CLASS = int(np.iinfo(np.int32).min)
# Instead of a layer's name: the pixels of the input.
PIXELS = "pixels"

INPUTS = ("images", "classes", "against")
"""The names of a graph's inputs."""

_PREDICTED = ("logits", "probabilities", "chosen", "scores")


def output_names(layer_count: int) -> tuple[str, ...]:
    """Returns the names of a graph's outputs: the predictions, then the maps of each layer."""
    return *_PREDICTED, *(f"maps_{number}" for number in range(layer_count))


def by_rank(rank: int) -> int:
    """Returns the code for the class of a rank by logit; rank 0 is the top class."""
    return -1 - rank


@dataclass(frozen=True)
class GraphTarget:
    """A class to explain: an index or a ``by_rank`` code.

    Attributes:
        index: The class.
        against: The class to contrast it with, or ``NO_CLASS``.
    """

    index: int
    against: int = NO_CLASS


class GraphItem(NamedTuple):
    """One image of a batch.

    Attributes:
        image: RGB of the model's input size, shape (H, W, 3): uint8, or float32 if perturbed.
        targets: The classes to explain.
    """

    image: NDArray[np.uint8] | NDArray[np.float32]
    targets: Sequence[GraphTarget] = ()


class GraphOutput(NamedTuple):
    """The outputs of a graph for one image.

    Attributes:
        logits: float32, shape (classes,).
        probabilities: Softmax or sigmoid of the logits, float32, shape (classes,).
        classes: The explained classes, int32, shape (targets,).
        scores: The explained scores, float32, shape (targets,).
        maps: The maps of each layer before the method's final ReLU, float32, shape
            (targets, h, w); or the layer's strongest channels, shape (channels, h, w).
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    classes: NDArray[np.int32]
    scores: NDArray[np.float32]
    maps: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class GraphKey:
    """Identifies a graph by what it computes.

    Attributes:
        model: Id of the model.
        layers: Names of the layers whose activations are explained.
        method: The explanation method.
        score_type: The score of a class that is explained.
        max_targets: Number of targets of each image. Each target costs a backward pass from its
            score to the layers.
        perturbed: Whether images are float32, as the methods of many passes make them. Such
            graphs run in the background.
        channel_count: If positive, return this many of the strongest channels of each
            layer instead of explanations.
    """

    model: str
    layers: tuple[str, ...]
    method: Method
    score_type: ScoreType
    max_targets: int
    perturbed: bool = False
    channel_count: int = 0

    @property
    def pixel_type(self) -> type[np.uint8] | type[np.float32]:
        """The dtype of the images."""
        return np.float32 if self.perturbed else np.uint8

    def __str__(self) -> str:
        layers = " + ".join(self.layers)
        output = f"{self.channel_count} channels" if self.channel_count else self.method
        perturbed = " of perturbed images" if self.perturbed else ""
        return f"{self.model}, {output} of the {self.score_type} at {layers}{perturbed}"
