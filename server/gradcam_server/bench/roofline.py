"""The roofline: the lower bound of a model's time, by its arithmetic and by its memory traffic.

Both speeds are measured on this machine: that of a large matrix product, the highest that any
library reaches, and that of an addition to a large array.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from gradcam_server.bench.subjects import keras_model
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.errors import StartupError

_SIDE = 3072
_ARRAY_BYTES = 2**28
_RUNS = 6


@dataclass(frozen=True)
class Work:
    """The work of a model in float32.

    Attributes:
        flop: Floating-point operations of convolutions and dense layers for an image, a
            multiplication and an addition being two.
        weight_bytes: Bytes of the weights, read once for each batch.
        activation_bytes: Bytes that convolutions and dense layers read and write for an image, if
            all operations between them are fused into them.
    """

    flop: float
    weight_bytes: float
    activation_bytes: float


@dataclass(frozen=True)
class Speed:
    """The speed of a device in float32.

    Attributes:
        flop_per_s: Operations per second of a large matrix product.
        bytes_per_s: Bytes per second that an addition reads and writes.
    """

    flop_per_s: float
    bytes_per_s: float


def fastest(*speeds: Speed) -> Speed:
    """Returns the highest of several measurements, which other processes may have disturbed."""
    return Speed(*(max(speed) for speed in zip(*map(astuple, speeds), strict=True)))


def roofline_ms(work: Work, speed: Speed, batch_size: int) -> dict[str, float]:
    """Returns the minimum milliseconds of an image, by arithmetic and by bytes.

    The greater of the two is the roofline: at best they overlap.
    """
    moved = work.weight_bytes / batch_size + work.activation_bytes
    return {
        "arithmetic": work.flop / speed.flop_per_s * 1e3,
        "bytes": moved / speed.bytes_per_s * 1e3,
    }


class Roofline:
    """Counts a model's work and measures the device's speed; made in a ``Worker``.

    Args:
        spec: A built-in model.
        device: ``cpu`` or ``gpu``.

    Raises:
        StartupError: TensorFlow sees no GPU, and would use the CPU instead.
    """

    def __init__(self, spec: ModelSpec, device: str) -> None:
        import tensorflow as tf

        if device == "gpu" and not tf.config.list_physical_devices("GPU"):
            raise StartupError("TensorFlow sees no GPU: pip install 'gradcam-server[gpu]'")
        self._model = keras_model(spec)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        height, width = self._model.input_shape[1:3]
        return height, width

    def describe(self) -> tuple[Work, tuple[int, int]]:
        """Returns the model's work and the (height, width) of images."""
        return count_work(self._model), self.input_size

    def speed(self) -> Speed:
        """Measures the device; returns the best of several runs."""
        import tensorflow as tf

        matrix = tf.random.normal((_SIDE, _SIDE))
        array = tf.ones(_ARRAY_BYTES // 4)
        total = tf.Variable(array)  # added to in place: else page faults would be measured
        return Speed(
            2 * _SIDE**3 / _best(lambda: tf.matmul(matrix, matrix)[0, 0].numpy()),
            3 * _ARRAY_BYTES / _best(lambda: total.assign_add(array)[0].numpy()),
        )


def count_work(model: Any) -> Work:
    """Counts the convolutions and dense layers of a flat Keras model."""
    flop = moved = weights = 0.0
    for layer in model.layers:
        weights += 4 * sum(math.prod(weight.shape) for weight in layer.weights)
        kernel = getattr(layer, "kernel", None)
        if kernel is None:
            continue
        output, source = layer.output.shape[1:], layer.input.shape[1:]
        flop += 2 * math.prod(kernel.shape) * math.prod(output[:-1])
        moved += 4 * (math.prod(source) + math.prod(output))
    return Work(flop, weights, moved)


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)
