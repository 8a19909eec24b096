"""What the arithmetic and the bytes of a model take at the least, on this machine.

Both speeds are measured: that of a large matrix product, the most that any library reaches, and
that of an addition to a large array.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradcam_server.bench.own import keras_model
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.errors import StartupError

_SIDE = 3072
_ARRAY_BYTES = 2**28
_RUNS = 6


@dataclass(frozen=True)
class Work:
    """What one image costs in float32.

    Attributes:
        flop: Of convolutions and dense layers, a multiplication and an addition being two.
        weight_bytes: Read once for each batch.
        activation_bytes: Of each image: what convolutions and dense layers read and write, if
            everything between them is fused into them.
    """

    flop: float
    weight_bytes: float
    activation_bytes: float


@dataclass(frozen=True)
class Speed:
    """What the machine can do in float32.

    Attributes:
        flop_per_s: In a large matrix product.
        bytes_per_s: Read and written by an addition.
    """

    flop_per_s: float
    bytes_per_s: float


def fastest(*found: Speed) -> Speed:
    """Returns the best of several measurements, each of which others may have disturbed."""
    return Speed(max(one.flop_per_s for one in found), max(one.bytes_per_s for one in found))


def roofline_ms(work: Work, speed: Speed, batch_size: int) -> dict[str, float]:
    """Returns the least milliseconds of an image, by arithmetic and by bytes.

    Whichever is greater is the floor: the two overlap at best.
    """
    moved = work.weight_bytes / batch_size + work.activation_bytes
    return {
        "arithmetic": work.flop / speed.flop_per_s * 1e3,
        "bytes": moved / speed.bytes_per_s * 1e3,
    }


class Roofline:
    """Counts a model's work and measures the device's speed; for a ``Worker``.

    Args:
        spec: A built-in model.
        device: ``cpu`` or ``gpu``.

    Raises:
        StartupError: TensorFlow sees no GPU, and would take the CPU for one.
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
        """Returns the work of one image and the (height, width) of images."""
        return count_work(self._model), self.input_size

    def speed(self) -> Speed:
        """Measures; the best of several runs."""
        import tensorflow as tf

        matrix = tf.random.normal((_SIDE, _SIDE))
        array = tf.ones(_ARRAY_BYTES // 4)
        total = tf.Variable(array)  # in place: new pages would be measured else
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
