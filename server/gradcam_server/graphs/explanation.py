"""The compiled explanation graph: one forward and one partial backward pass.

    uint8 images -> preprocess -> network -> logits -> score of each target
                                    |                      |
                             activations A  <- gradients --+
                                    |
                                    maps

It is a function of tensors whose weights are the network's variables; ``compilers`` make it
executable.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from gradcam_server.domain.graph_io import NO_CLASS, PIXELS, GraphKey
from gradcam_server.domain.options import Precision
from gradcam_server.domain.preprocessing import takes_bgr
from gradcam_server.domain.registry import REGISTRY
from gradcam_server.domain.requests import ScoreType
from gradcam_server.errors import DisconnectedLayerError
from gradcam_server.graphs.executable import CompilationCounter
from gradcam_server.methods.one_pass import CONTRASTS, METHODS
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.network import PROBABILITIES
from gradcam_server.models.preprocessing import preprocess

# Name scope of all operations from the gradients to the maps.
TAIL = "explanation"

# Number of outputs of ``explain`` before the maps.
_PREDICTED = 4


class ExplanationGraph:
    """The explanation graph as compilers take it: a function and its signature.

    Args:
        model: The model.
        key: Which graph it is.
        counter: Is incremented for each function that is traced.
    """

    def __init__(self, model: LoadedModel, key: GraphKey, counter: CompilationCounter) -> None:
        self.model, self.key = model, key
        self._row = REGISTRY[key.method]
        self._counter = counter

    def signature(self, batch_size: int | None) -> tuple[tf.TensorSpec, ...]:
        """Returns the signature of ``explain``; ``None`` is a batch of any size."""
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
        """Predicts and explains a batch, inside a ``tf.function``.

        Args:
            images: Pixels, uint8 (float32 if the key says perturbed), shape (B, H, W, 3).
            classes: Indices or ``by_rank`` codes, int32, shape (B, targets).
            against: The classes to contrast them with, or ``NO_CLASS``, int32, shape (B, targets).
            precision: The precision of the network; all operations after it are in float32.

        Returns:
            The logits and probabilities (B, classes), the explained classes and their scores
            (B, targets), and the maps of each layer (B, targets, h, w).

        Raises:
            DisconnectedLayerError: The scores do not depend on one of the layers.
        """
        predicted, activations, gradients = self._differentiate(images, classes, against, precision)
        if self.key.channel_count:
            return *predicted, *activations
        with tf.name_scope(f"{TAIL}/"):  # the same scope again
            return *predicted, *map(self._maps, activations, gradients)

    def differentiate(
        self,
        images: tf.Tensor,
        classes: tf.Tensor,
        against: tf.Tensor,
        precision: Precision = Precision.FLOAT32,
    ) -> tuple[tf.Tensor, ...]:
        """Computes ``explain`` up to the maps, which differ by method; takes the same arguments.

        Returns:
            The first four outputs of ``explain``; the activations of each layer, (B, h, w, K), and
            its gradients, (B, targets, h, w, K), if the method needs them, float32.

        Raises:
            DisconnectedLayerError: The scores do not depend on one of the layers.
        """
        predicted, activations, gradients = self._differentiate(images, classes, against, precision)
        stacked = [tf.stack(of_layer, axis=1) for of_layer in gradients if of_layer]
        return *predicted, *activations, *stacked

    def maps(self, differentiated: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
        """Computes the outputs of ``explain`` from those of ``differentiate``; also eagerly."""
        predicted, count = differentiated[:_PREDICTED], len(self.key.layers)
        layers = differentiated[_PREDICTED:]
        gradients = [tf.unstack(of_layer, axis=1) for of_layer in layers[count:]] or [()] * count
        return *predicted, *map(self._maps, layers[:count], gradients)

    def _maps(self, activation: tf.Tensor, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        method = METHODS[self.key.method]
        if not self._row.needs_gradient:
            return tf.stack([method(activation, None)] * self.key.max_targets, axis=1)
        return tf.stack([method(activation, gradient) for gradient in gradients], axis=1)

    def _differentiate(
        self, images: tf.Tensor, classes: tf.Tensor, against: tf.Tensor, precision: Precision
    ) -> tuple[tuple[tf.Tensor, ...], list[tf.Tensor], list[list[tf.Tensor]]]:
        """Returns the first four outputs of ``explain``, activations, and gradients by target.

        The gradients are empty if the method needs none. If the key asks for channels, they are
        empty too, and the strongest channels stand instead of the activations.
        """
        self._counter.increment()  # runs while tracing, not in the graph
        network = self.model.network
        pixels = tf.cast(images, tf.float32)
        layers = [layer for layer in self.key.layers if layer != PIXELS]
        head = network.head if self.key.score_type is ScoreType.LOGIT else None
        seen = [*layers, head.features] if head else layers
        activations, logits = self.run_network(pixels, seen, precision)
        features: Any = activations.pop() if head else None
        if not layers:
            activations = [pixels]
        probabilities = PROBABILITIES[network.output_activation](logits)
        values = logits if self.key.score_type is ScoreType.LOGIT else probabilities
        chosen, other = _choose(classes, logits), _choose(against, logits)
        is_requested = tf.cast(against != NO_CLASS, tf.float32)
        subtracted = CONTRASTS[self.key.method](logits, chosen, other, is_requested)
        scores = tf.gather(values, chosen, batch_dims=1)
        for others, weights in subtracted:
            scores -= weights * tf.gather(values, others, batch_dims=1)
        predicted = logits, probabilities, chosen, scores
        if self.key.channel_count:
            channels = [_strongest(layer, self.key.channel_count) for layer in activations]
            return predicted, channels, []
        with tf.name_scope(TAIL):
            outputs: list[tuple[tf.Tensor, tf.Tensor | None]] = []
            if self._row.needs_gradient and head:
                slopes = tf.cast(_slopes(head.kernel, chosen, subtracted), features.dtype)
                outputs = [(features, slope) for slope in tf.unstack(slopes, axis=1)]
            elif self._row.needs_gradient:
                # Not scores[:, index]: OpenVINO has no gradient of a strided slice.
                outputs = [(score, None) for score in tf.unstack(scores, axis=1)]
            gradients = self._gradients(outputs, activations)
            wide = [tf.cast(activation, tf.float32) for activation in activations]
        return predicted, wide, gradients

    def _gradients(
        self,
        outputs: Sequence[tuple[tf.Tensor, tf.Tensor | None]],
        activations: Sequence[tf.Tensor],
    ) -> list[list[tf.Tensor]]:
        """Differentiates each target's output, times a slope, by each layer's activation."""
        found: list[list[tf.Tensor]] = [[] for _ in activations]
        for output, slope in outputs:
            # Images are independent, so the gradient of the sum over the batch is each image's own.
            gradients = tf.gradients(output, activations, slope)
            for layer, gradient, of_layer in zip(self.key.layers, gradients, found, strict=True):
                if gradient is None:
                    raise DisconnectedLayerError(layer)
                of_layer.append(tf.cast(gradient, tf.float32))
        return found

    def run_network(
        self, pixels: tf.Tensor, layers: Sequence[str], precision: Precision
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Preprocesses pixels; returns the outputs of the layers, and the logits."""
        network, how = self.model.network, self.model.preprocessing
        is_reversed = network.can_reverse and takes_bgr(how)
        inputs = preprocess(pixels, how, keep_order=is_reversed)
        return network.compute(inputs, layers, precision, is_reversed=is_reversed)


def _slopes(
    kernel: tf.Tensor, classes: tf.Tensor, subtracted: Sequence[tuple[tf.Tensor, tf.Tensor]]
) -> tf.Tensor:
    """Returns the gradients of the scores by the head's features, (B, targets, features)."""
    # Columns of the kernel: a gradient by the scores would multiply all of it.
    columns = tf.gather(kernel, classes, axis=1)
    for others, weights in subtracted:
        columns -= tf.cast(weights, columns.dtype) * tf.gather(kernel, others, axis=1)
    return tf.transpose(columns, [1, 2, 0])


def _strongest(activation: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the channels of the largest standard deviation over the positions.

    Returns:
        float32, shape (B, count, H, W); zero where the layer has fewer channels.
    """
    activation = tf.cast(activation, tf.float32)
    available = min(count, activation.shape[-1])
    deviation = tf.math.reduce_std(activation, axis=[1, 2])
    strongest = tf.math.top_k(deviation, k=available).indices
    channels = tf.gather(tf.transpose(activation, [0, 3, 1, 2]), strongest, batch_dims=1)
    return tf.pad(channels, [[0, 0], [0, count - available], [0, 0], [0, 0]])


def _choose(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Replaces ``by_rank`` codes by the classes of these ranks; ``NO_CLASS`` by any class."""
    ranked = tf.math.top_k(logits, k=min(classes.shape[1], logits.shape[1])).indices
    ranks = tf.clip_by_value(-1 - classes, 0, ranked.shape[1] - 1)
    return tf.where(classes < 0, tf.gather(ranked, ranks, batch_dims=1), classes)
