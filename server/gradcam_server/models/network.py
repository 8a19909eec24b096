"""The protocol of networks: what the compiled graph needs of a model of any source."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import tensorflow as tf

from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.options import Precision

DEFAULT_INPUT_SIZE = (224, 224)
"""(height, width) in pixels, where neither a model nor ``--input-size`` fixes them."""


class OutputActivation(StrEnum):
    """The function that makes probabilities of logits."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    EXPONENTIAL = "exponential"  # The logits are logarithms of the model's probabilities.


PROBABILITIES = {
    OutputActivation.SOFTMAX: tf.nn.softmax,
    OutputActivation.SIGMOID: tf.nn.sigmoid,
    OutputActivation.EXPONENTIAL: tf.exp,
}


@dataclass(frozen=True)
class LinearHead:
    """The dense layer at the end: logits = features @ kernel + bias.

    A logit's gradient by the features is a column of the kernel, which a graph can read instead
    of multiplying a one-hot vector with all of it.

    Attributes:
        features: Name of the layer whose output, (B, K), is its input; ``compute`` takes it.
        kernel: Variable, (K, classes).
    """

    features: str
    kernel: Any


class Network(Protocol):
    """A network from preprocessed images to logits, any of whose layers can be seen."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        ...

    @property
    def class_count(self) -> int:
        """Number of logits."""
        ...

    @property
    def output_activation(self) -> OutputActivation:
        """The function from logits to probabilities, whether or not the model applies it."""
        ...

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The layers in order; nested layers have paths, such as "resnet50/conv1_conv"."""
        ...

    @property
    def head(self) -> LinearHead | None:
        """The dense layer that makes the logits, if there is one and it can be seen."""
        ...

    @property
    def can_reverse(self) -> bool:
        """Whether ``compute`` can take channels in reverse order."""
        ...

    def compute(
        self,
        inputs: tf.Tensor,
        layers: Sequence[str],
        precision: Precision = ...,
        *,
        is_reversed: bool = ...,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Runs the network in inference mode, inside a ``tf.function`` or eagerly.

        Args:
            inputs: float32 (B, H, W, 3), preprocessed.
            layers: Names of the layers whose outputs to return.
            precision: The precision; float32 by default.
            is_reversed: Whether the channels of ``inputs`` are in reverse order: RGB for a network
                that takes BGR. The first convolution's weights are reversed, not the channels.

        Returns:
            The outputs of these layers, in the order of ``layers``, and the logits (B, classes).
            ``tf.gradients`` of the logits by the outputs is defined.

        Raises:
            CompilerError: The network cannot be computed in this precision.
        """
        ...
