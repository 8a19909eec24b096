"""A network of one output, as two classes: the negative and the positive class."""

from collections.abc import Sequence

import tensorflow as tf

from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.options import Precision
from gradcam_server.models.network import LinearHead, Network, OutputActivation


class TwoClasses:
    """A network with the logits -z and z, and so the probabilities 1 - p and p.

    Args:
        network: A network with one logit, z, of a sigmoid.
    """

    class_count = 2
    output_activation = OutputActivation.SIGMOID
    head: LinearHead | None = None  # The kernel has one column, for two classes.

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self._network.input_size

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The layers in order."""
        return self._network.layers

    @property
    def can_reverse(self) -> bool:
        """Whether ``compute`` can take channels in reverse order."""
        return self._network.can_reverse

    def compute(
        self,
        inputs: tf.Tensor,
        layers: Sequence[str],
        precision: Precision = Precision.FLOAT32,
        *,
        is_reversed: bool = False,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Runs the network; see ``Network.compute``."""
        seen, logits = self._network.compute(inputs, layers, precision, is_reversed=is_reversed)
        return seen, tf.concat([-logits, logits], axis=1)
