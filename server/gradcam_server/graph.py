"""The compiled explanation graph: one forward and one partial backward pass.

    uint8 images -> preprocess -> network -> logits -> score of each target
                                    |                      |
                             activations A  <- gradients --+
                                    |
                                    maps

``compilers`` make it run. Until then it is a function of tensors, and the weights are the
network's variables.
"""

import tensorflow as tf

from gradcam_server.compiled import CompilationCounter
from gradcam_server.config import Precision
from gradcam_server.graph_io import NO_CLASS, PIXELS, GraphKey
from gradcam_server.methods import METHODS
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.network import OutputActivation
from gradcam_server.models.preprocessing import preprocess
from gradcam_server.requests import ScoreType


class ExplanationGraph:
    """What a compiler is given: the function, and the tensors that it takes.

    Args:
        model: The model.
        key: What to compute.
        counter: Counts each function that is traced.
    """

    def __init__(self, model: LoadedModel, key: GraphKey, counter: CompilationCounter) -> None:
        self.model, self.key = model, key
        self._counter = counter

    def signature(self, batch_size: int | None) -> tuple[tf.TensorSpec, ...]:
        """Returns what ``explain`` takes; a batch of any size for None."""
        images = tf.TensorSpec((batch_size, *self.model.input_size, 3), self.key.pixel_type)
        targets = tf.TensorSpec((batch_size, self.key.max_targets), tf.int32)
        return images, targets, targets

    def explain(
        self,
        images: tf.Tensor,
        classes: tf.Tensor,
        against: tf.Tensor,
        precision: Precision = Precision.FLOAT32,
    ) -> tuple[tf.Tensor, ...]:
        """Computes, inside a ``tf.function``.

        Args:
            images: Pixels, uint8 (float32 for perturbed ones), shape (B, H, W, 3).
            classes: Indices or ``by_rank`` codes, int32, shape (B, targets).
            against: What to contrast them with, or ``NO_CLASS``; as ``classes``.
            precision: What the network is computed in; all after it is float32.

        Returns:
            The logits and probabilities (B, classes), the explained classes and their scores
            (B, targets), and the maps of each layer (B, targets, h, w).

        Raises:
            DisconnectedLayerError: The scores don't depend on one of the layers.
        """
        self._counter.increment()  # runs while tracing, not in the graph
        network = self.model.network
        pixels = tf.cast(images, tf.float32)
        inputs = preprocess(pixels, self.model.preprocessing)
        layers = [layer for layer in self.key.layers if layer != PIXELS]
        activations, logits = network.compute(inputs, layers, precision)
        if not layers:
            activations = [pixels]
        probabilities = _ACTIVATIONS[network.output_activation](logits)
        values = logits if self.key.score_type is ScoreType.LOGIT else probabilities
        chosen = _choose(classes, logits)
        contrasted = tf.cast(against != NO_CLASS, tf.float32)
        scores = tf.gather(values, chosen, batch_dims=1)
        scores -= contrasted * tf.gather(values, _choose(against, logits), batch_dims=1)
        if self.key.channel_count:
            channels = (_strongest(one, self.key.channel_count) for one in activations)
            return logits, probabilities, chosen, scores, *channels
        maps: list[list[tf.Tensor]] = [[] for _ in activations]
        # Not scores[:, slot]: OpenVINO has no gradient of a strided slice.
        for of_slot in tf.unstack(scores, axis=1):
            # The images are independent, so the sum's gradient is each one's own.
            gradients = tf.gradients(tf.reduce_sum(of_slot), activations)
            for layer, activation, gradient, of_layer in zip(
                self.key.layers, activations, gradients, maps, strict=True
            ):
                if gradient is None:
                    raise DisconnectedLayerError(layer)
                method = METHODS[self.key.method]
                of_layer.append(
                    method(tf.cast(activation, tf.float32), tf.cast(gradient, tf.float32))
                )
        stacked = (tf.stack(of_layer, axis=1) for of_layer in maps)
        return logits, probabilities, chosen, scores, *stacked


def _strongest(activation: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the channels that vary most over the positions, (B, count, H, W); zero if none."""
    activation = tf.cast(activation, tf.float32)
    available = min(count, activation.shape[-1])
    deviation = tf.math.reduce_std(activation, axis=[1, 2])
    strongest = tf.math.top_k(deviation, k=available).indices
    channels = tf.gather(tf.transpose(activation, [0, 3, 1, 2]), strongest, batch_dims=1)
    return tf.pad(channels, [[0, 0], [0, count - available], [0, 0], [0, 0]])


class DisconnectedLayerError(ValueError):
    """The classes don't depend on a layer."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"the classes do not depend on {layer}")
        self.layer = layer


_ACTIVATIONS = {OutputActivation.SOFTMAX: tf.nn.softmax, OutputActivation.SIGMOID: tf.nn.sigmoid}


def _choose(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Replaces ``by_rank`` codes by the classes of these ranks; NO_CLASS by any class."""
    ranked = tf.math.top_k(logits, k=min(classes.shape[1], logits.shape[1])).indices
    ranks = tf.clip_by_value(-1 - classes, 0, ranked.shape[1] - 1)
    return tf.where(classes < 0, tf.gather(ranked, ranks, batch_dims=1), classes)
