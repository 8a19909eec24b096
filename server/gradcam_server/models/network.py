"""What the compiled graph needs of a model, whatever it was made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import tensorflow as tf

from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.options import Precision


class OutputActivation(StrEnum):
    """What turns the logits into probabilities."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    EXPONENTIAL = "exponential"  # The logits are logarithms of the model's own probabilities.


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
        features: Name of what the layer is given, (B, K), as ``Network.compute`` takes it.
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
        """What the model applies to its logits, or is meant to."""
        ...

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The layers in their order; nested ones by path, such as "resnet50/conv1_conv"."""
        ...

    @property
    def head(self) -> LinearHead | None:
        """What makes the logits, if that is a dense layer that can be seen."""
        ...

    @property
    def can_reverse(self) -> bool:
        """Whether ``compute`` can take channels in the other order."""
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
            layers: Names of layers to see.
            precision: What to compute in; float32 if not said.
            is_reversed: The channels of ``inputs`` are in the other order: RGB for a network
                that takes BGR. Nothing is moved; the first convolution's weights are turned.

        Returns:
            The outputs of these layers, in their order, and the logits (B, classes).
            ``tf.gradients`` of the logits by the outputs is defined.

        Raises:
            CompilerError: It cannot be computed in this precision.
        """
        ...
