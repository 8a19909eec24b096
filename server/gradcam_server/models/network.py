"""What the compiled graph needs of a model, whatever it was made of."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import tensorflow as tf

from gradcam_server.config import Precision
from gradcam_server.layers import LayerInfo


class OutputActivation(StrEnum):
    """What turns the logits into probabilities."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


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

    def compute(
        self,
        inputs: tf.Tensor,
        layers: Sequence[str],
        precision: Precision = ...,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Runs the network in inference mode, inside a ``tf.function`` or eagerly.

        Args:
            inputs: float32 (B, H, W, 3), preprocessed.
            layers: Names of layers to see.
            precision: What to compute in; float32 if not said.

        Returns:
            The outputs of these layers, in their order, and the logits (B, classes).
            ``tf.gradients`` of the logits by the outputs is defined.

        Raises:
            CompilerError: It cannot be computed in this precision.
        """
        ...
