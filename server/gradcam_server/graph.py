"""The compiled explanation graph: one forward and one partial backward pass.

    uint8 images -> preprocess -> network -> logits -> score of each target
                                    |                      |
                             activations A  <- gradients --+
                                    |
                                    maps

A graph is one ``tf.function`` for each batch size, jitted by XLA or run by TensorFlow's own
executor. The weights are the network's variables, in memory once for all of them.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradcam_server.config import Compiler
from gradcam_server.graph_io import (
    NO_CLASS,
    PIXELS,
    GraphItem,
    GraphKey,
    GraphOutput,
    by_rank,
)
from gradcam_server.ladder import plan_batch
from gradcam_server.methods import METHODS
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.network import OutputActivation
from gradcam_server.models.preprocessing import preprocess
from gradcam_server.requests import ScoreType

logger = logging.getLogger(__name__)

_TIMED_RUNS = 3
_CANDIDATES = (Compiler.XLA, Compiler.TENSORFLOW)


@dataclass(frozen=True)
class _Compiled:
    batch_size: int
    compiler: Compiler
    function: Any
    cost_s: float


class CompilationCounter:
    """Counts traced and compiled functions; after the warm-up it must stand still."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def increment(self) -> None:
        """Counts one."""
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        """Functions traced so far. Each has one input signature, so compiles once."""
        return self._count


class ExplanationGraph:
    """Predicts, and explains up to ``max_targets`` classes of each image.

    Compiled for a fixed ladder of batch sizes; a batch is padded to one of them. Each
    image's answer is the same alone, batched and padded, to float32 rounding.

    Args:
        model: The model.
        key: What to compute.
        counter: Counts each function that is traced.
    """

    def __init__(self, model: LoadedModel, key: GraphKey, counter: CompilationCounter) -> None:
        self.model, self.key = model, key
        self._counter = counter
        self._ladder: dict[int, _Compiled] = {}

    @property
    def _pixel_type(self) -> tf.DType:
        return tf.float32 if self.key.perturbed else tf.uint8

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The compiled batch sizes, ascending."""
        return tuple(self._ladder)

    @property
    def compiler(self) -> Compiler:
        """What runs it: one for all batch sizes."""
        return self._ladder[self.max_batch_size].compiler

    @property
    def background(self) -> bool:
        """Whether its batches must leave the device to others."""
        return self.key.perturbed

    @property
    def max_batch_size(self) -> int:
        """The largest compiled batch size."""
        return max(self._ladder)

    def compile(self, batch_sizes: Sequence[int], compiler: Compiler = Compiler.XLA) -> None:
        """Traces, compiles and times the ladder. Nothing is compiled after this.

        Args:
            batch_sizes: The ladder, ascending.
            compiler: ``AUTO`` tries the others at the largest size and keeps the fastest.

        Raises:
            DisconnectedLayerError: The scores don't depend on one of the layers.
        """
        *smaller, largest = batch_sizes
        candidates = _CANDIDATES if compiler is Compiler.AUTO else (compiler,)
        built = [self._build(largest, candidate) for candidate in candidates]
        fastest = min(built, key=lambda one: one.cost_s)
        ladder = [self._build(size, fastest.compiler) for size in smaller]
        self._ladder = {one.batch_size: one for one in (*ladder, fastest)}
        logger.info(
            "Compiled %s by %s; milliseconds by batch size: %s",
            *(self.key, fastest.compiler),
            ", ".join(f"{size}: {one.cost_s * 1e3:.1f}" for size, one in self._ladder.items()),
        )

    def _build(self, size: int, compiler: Compiler) -> _Compiled:
        targets = tf.TensorSpec((size, self.key.max_targets), tf.int32)
        images = tf.TensorSpec((size, *self.model.input_size, 3), self._pixel_type)
        signature = (images, targets, targets)
        function = tf.function(
            self._explain,
            input_signature=signature,
            jit_compile=compiler is Compiler.XLA,
            autograph=False,
        ).get_concrete_function()  # which cannot trace again
        blank = [np.zeros(spec.shape, spec.dtype.as_numpy_dtype) for spec in signature]
        seconds = [_seconds(function, *blank) for _ in range(1 + _TIMED_RUNS)]
        logger.debug("%s, batch size %d: %s s", compiler, size, seconds)
        return _Compiled(size, compiler, function, min(seconds[1:]))

    @property
    def least_s(self) -> float:
        """Seconds that its quickest batch takes, as measured."""
        return min(one.cost_s for one in self._ladder.values())

    def plan(self, waiting: int) -> tuple[int, int]:
        """Chooses how many of ``waiting`` images to take, and the batch size to run."""
        return plan_batch(waiting, {size: one.cost_s for size, one in self._ladder.items()})

    def run(self, items: Sequence[GraphItem], padded_size: int) -> list[GraphOutput]:
        """Computes a batch.

        Args:
            items: At most ``padded_size`` images.
            padded_size: A compiled batch size.

        Returns:
            One output for each item, in their order.
        """
        images = np.zeros((padded_size, *self.model.input_size, 3), self._pixel_type.as_numpy_dtype)
        classes = np.full((padded_size, self.key.max_targets), by_rank(0), np.int32)
        against = np.full_like(classes, NO_CLASS)
        for row, item in enumerate(items):
            images[row] = item.image
            for slot, target in enumerate(item.targets):
                classes[row, slot], against[row, slot] = target.index, target.against
        logits, probabilities, chosen, scores, *maps = _call(
            self._ladder[padded_size].function, images, classes, against
        )
        return [
            GraphOutput(
                logits[row],
                probabilities[row],
                chosen[row, :count],
                scores[row, :count],
                tuple(of_layer[row, : self.key.channel_count or count] for of_layer in maps),
            )
            for row, count in enumerate(len(item.targets) for item in items)
        ]

    def _explain(
        self, images: tf.Tensor, classes: tf.Tensor, against: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        self._counter.increment()  # runs while tracing, not in the graph
        network = self.model.network
        pixels = tf.cast(images, tf.float32)
        inputs = preprocess(pixels, self.model.preprocessing)
        layers = [layer for layer in self.key.layers if layer != PIXELS]
        activations, logits = network.compute(inputs, layers)
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


def _call(function: Any, *arguments: NDArray[Any]) -> list[Any]:
    return [tensor.numpy() for tensor in function(*map(tf.constant, arguments))]


def _seconds(function: Any, *arguments: NDArray[Any]) -> float:
    started = perf_counter()
    _call(function, *arguments)
    return perf_counter() - started


def _choose(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Replaces ``by_rank`` codes by the classes of these ranks; NO_CLASS by any class."""
    ranked = tf.math.top_k(logits, k=min(classes.shape[1], logits.shape[1])).indices
    ranks = tf.clip_by_value(-1 - classes, 0, ranked.shape[1] - 1)
    return tf.where(classes < 0, tf.gather(ranked, ranks, batch_dims=1), classes)
