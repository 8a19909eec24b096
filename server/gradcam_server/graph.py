"""The compiled explanation graph: one forward and one partial backward pass.

    uint8 images -> preprocess -> network -> logits -> score of each target
                                    |                      |
                                activation A  <- gradient -+
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

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradcam_server.config import Compiler
from gradcam_server.ladder import plan_batch
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.preprocessing import preprocess
from gradcam_server.requests import Method

logger = logging.getLogger(__name__)

_TIMED_RUNS = 3
_CANDIDATES = (Compiler.XLA, Compiler.TENSORFLOW)


def by_rank(rank: int) -> int:
    """Returns the class choice that means "the class of this rank"; 0 is the top one."""
    return -1 - rank


@dataclass(frozen=True)
class GraphItem:
    """One image of a batch.

    Attributes:
        image: uint8 RGB of the model's input size, shape (H, W, 3).
        classes: The targets: class indices, or ``by_rank`` codes.
    """

    image: NDArray[np.uint8]
    classes: Sequence[int]


@dataclass(frozen=True)
class GraphOutput:
    """What the graph found in one image.

    Attributes:
        logits: float32, shape (classes,).
        probabilities: Softmax of the logits, float32, shape (classes,).
        classes: The explained classes, int32, shape (targets,).
        maps: Before the method's final ReLU, float32, shape (targets, h, w).
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    classes: NDArray[np.int32]
    maps: NDArray[np.float32]


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
        layer: Name of the layer whose activation is explained.
        method: The explanation method.
        max_targets: Targets of each image. Each costs a backward pass from the scores
            to the layer.
        counter: Counts each function that is traced.

    Raises:
        ValueError: There is no such layer, or the classes don't depend on it.
    """

    def __init__(
        self,
        model: LoadedModel,
        layer: str,
        method: Method,
        max_targets: int,
        counter: CompilationCounter,
    ) -> None:
        self.model, self.layer, self.method = model, layer, method
        self.max_targets = max_targets
        self._counter = counter
        activation = model.network.get_layer(layer).output
        self._network = keras.Model(model.network.input, [activation, model.network.output])
        self._ladder: dict[int, _Compiled] = {}

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The compiled batch sizes, ascending."""
        return tuple(self._ladder)

    @property
    def max_batch_size(self) -> int:
        """The largest compiled batch size."""
        return max(self._ladder)

    def compile(self, batch_sizes: Sequence[int], compiler: Compiler = Compiler.XLA) -> None:
        """Traces, compiles and times the ladder. Nothing is compiled after this.

        Args:
            batch_sizes: The ladder, ascending.
            compiler: ``AUTO`` tries the others at the largest size and keeps the fastest.
        """
        *smaller, largest = batch_sizes
        candidates = _CANDIDATES if compiler is Compiler.AUTO else (compiler,)
        built = [self._build(largest, candidate) for candidate in candidates]
        fastest = min(built, key=lambda one: one.cost_s)
        ladder = [self._build(size, fastest.compiler) for size in smaller]
        self._ladder = {one.batch_size: one for one in (*ladder, fastest)}
        logger.info(
            "Compiled %s, %s at %s by %s; milliseconds by batch size: %s",
            *(self.model.name, self.method, self.layer, fastest.compiler),
            ", ".join(f"{size}: {one.cost_s * 1e3:.1f}" for size, one in self._ladder.items()),
        )

    def _build(self, size: int, compiler: Compiler) -> _Compiled:
        signature = (
            tf.TensorSpec((size, *self.model.input_size, 3), tf.uint8, "images"),
            tf.TensorSpec((size, self.max_targets), tf.int32, "classes"),
        )
        function = tf.function(
            self._explain,
            input_signature=signature,
            jit_compile=compiler is Compiler.XLA,
            autograph=False,
        ).get_concrete_function()  # which cannot trace again
        blank = (np.zeros(signature[0].shape, np.uint8), np.zeros(signature[1].shape, np.int32))
        seconds = [_seconds(function, *blank) for _ in range(1 + _TIMED_RUNS)]
        logger.debug("%s, batch size %d: %s s", compiler, size, seconds)
        return _Compiled(size, compiler, function, min(seconds[1:]))

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
        images = np.zeros((padded_size, *self.model.input_size, 3), np.uint8)
        classes = np.full((padded_size, self.max_targets), by_rank(0), np.int32)
        for row, item in enumerate(items):
            images[row] = item.image
            classes[row, : len(item.classes)] = item.classes
        logits, probabilities, chosen, maps = _call(
            self._ladder[padded_size].function, images, classes
        )
        return [
            GraphOutput(logits[row], probabilities[row], chosen[row, :count], maps[row, :count])
            for row, count in enumerate(len(item.classes) for item in items)
        ]

    def _explain(
        self, images: tf.Tensor, classes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        self._counter.increment()  # runs while tracing, not in the graph
        inputs = preprocess(images, self.model.preprocessing)
        activation, logits = self._network(inputs, training=False)
        chosen = _choose(classes, logits)
        scores = tf.gather(logits, chosen, batch_dims=1)
        maps = []
        for target in range(self.max_targets):
            # The images are independent, so the sum's gradient is each one's own.
            (gradient,) = tf.gradients(tf.reduce_sum(scores[:, target]), [activation])
            if gradient is None:
                raise ValueError(f"the classes of {self.model.name} don't depend on {self.layer}")
            maps.append(grad_cam(activation, gradient))
        return logits, tf.nn.softmax(logits), chosen, tf.stack(maps, axis=1)


def grad_cam(activation: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Grad-CAM before its ReLU: sum_k mean_ij(gradient_k) activation_k.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", ICCV 2017, equations 1 and 2.

    Args:
        activation: Shape (B, H, W, K).
        gradient: Of the score by the activation, the same shape.

    Returns:
        Shape (B, H, W).
    """
    weights = tf.reduce_mean(gradient, axis=[1, 2])
    return tf.einsum("bhwk,bk->bhw", activation, weights)


def _call(function: Any, images: NDArray[np.uint8], classes: NDArray[np.int32]) -> list[Any]:
    return [tensor.numpy() for tensor in function(tf.constant(images), tf.constant(classes))]


def _seconds(function: Any, images: NDArray[np.uint8], classes: NDArray[np.int32]) -> float:
    started = perf_counter()
    _call(function, images, classes)
    return perf_counter() - started


def _choose(classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Replaces ``by_rank`` codes by the classes of these ranks."""
    ranked = tf.math.top_k(logits, k=min(classes.shape[1], logits.shape[1])).indices
    ranks = tf.clip_by_value(-1 - classes, 0, ranked.shape[1] - 1)
    return tf.where(classes < 0, tf.gather(ranked, ranks, batch_dims=1), classes)
