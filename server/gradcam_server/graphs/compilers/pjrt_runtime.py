"""JAX's runtime (PJRT) runs StableHLO modules on CPUs and GPUs. Free of TensorFlow."""

import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from gradcam_server.domain.options import Precision
from gradcam_server.errors import quote
from gradcam_server.graphs.compilers.pjrt_modules import (
    Signature,
    read_signature,
    with_fast_products,
)
from gradcam_server.graphs.executable import Array, Executable, check_alike
from gradcam_server.graphs.timing import quickest_s

logger = logging.getLogger(__name__)

# Values of jax_default_matmul_precision that mean true float32; None is the default.
_TRUE_FLOAT32 = {None, "highest", "float32"}

# A CUDA graph of the whole model, with the convolutions, which XLA leaves out by itself: a batch of
# one is launched in two thirds of the time.
_OPTIONS = {
    "gpu": {
        "xla_gpu_enable_command_buffer": (
            "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONVOLUTION"
        )
    }
}
_SYNCHRONOUS = {"cpu"}
_TIMED_RUNS = 5

# XLA copies an upload of this size on one thread, and gets a new page for each 4 KiB of a larger.
_MAX_PART_BYTES = 10 << 20

_CACHE_HIT = "/jax/compilation_cache/cache_hits"
_CACHE_MISS = "/jax/compilation_cache/cache_misses"


class CacheCounter:
    """Counts what XLA compiled in this process, and what it read from the compilation cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {_CACHE_HIT: 0, _CACHE_MISS: 0}
        jax.monitoring.register_event_listener(self._note)

    def _note(self, event: str, **_: Any) -> None:
        if event in self._counts:
            with self._lock:
                self._counts[event] += 1

    @property
    def hits(self) -> int:
        """Modules read from the cache."""
        return self._counts[_CACHE_HIT]

    @property
    def misses(self) -> int:
        """Modules compiled that the cache did not have."""
        return self._counts[_CACHE_MISS]


CACHE_COUNTER = CacheCounter()


def describe_precision(precision: Precision, devices: Sequence[Any]) -> str:
    """Returns how float32 products are computed, in words; other precisions are named alone."""
    if precision is not Precision.FLOAT32:
        return precision.value
    is_rounded = _may_round() and any(device.platform != "cpu" for device in devices)
    return f"{precision} (products in TF32)" if is_rounded else f"{precision} (true float32)"


def put_weights(weights: Mapping[str, Array], device: Any) -> dict[str, Any]:
    """Copies weights to a device, where all modules share them."""
    return {name: jax.device_put(values, device) for name, values in weights.items()}


def load_module(
    artifact: bytes,
    weights: Sequence[Any],
    device: Any,
    options: Mapping[str, Any] | None = None,
) -> Executable:
    """Makes an executable of a module. XLA compiles it at its first run.

    On a GPU it returns at once (``graphs.executable.Executable``): images are uploaded on the
    thread of the caller, and graphs run on a thread of the device.

    Args:
        artifact: A module that ``read_signature`` takes.
        weights: The further inputs of ``main``, on the device.
        device: A ``jax.Device``.
        options: Options of XLA's compiler.
    """
    signature = read_signature(artifact)
    if _may_round():
        artifact = with_fast_products(artifact)
    call = _exported(artifact, signature, device).call

    def explain(parts: Sequence[Any], *inputs: Any) -> Sequence[Any]:
        return call(parts[0] if len(parts) == 1 else jnp.concatenate(parts), *inputs)

    function = jax.jit(explain, compiler_options=dict(options) if options else None)

    def launch(inputs: Sequence[Any]) -> Sequence[Any]:
        outputs = function(*inputs, *weights)
        for output in outputs:
            output.copy_to_host_async()
        return outputs

    if device.platform in _SYNCHRONOUS:

        def run(images: Array, *targets: Array) -> Sequence[Array]:
            inputs = jax.device_put(([images], *targets), device)
            return [np.asarray(output) for output in launch(inputs)]

        return run

    launcher, count = _launcher(device), len(signature.outputs)

    def start(images: Array, *targets: Array) -> Sequence[Any]:
        inputs = jax.device_put((_parts(images), *targets), device)
        launched = launcher.submit(launch, inputs)
        return [_Output(launched, number) for number in range(count)]

    return start


class _Output:
    """An output of a run that may not have begun: ``numpy.asarray`` waits for it."""

    def __init__(self, launched: "Future[Sequence[Any]]", number: int) -> None:
        self._launched, self._number = launched, number

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self._launched.result()[self._number], dtype)


@cache
def _launcher(device: Any) -> ThreadPoolExecutor:
    """Returns the thread that runs graphs on a device.

    To launch a graph takes as long as the graph of one image: meanwhile the next batch is uploaded.
    """
    return ThreadPoolExecutor(1, thread_name_prefix=f"launch-{device.id}")


def _parts(images: Array) -> Sequence[Array]:
    """Divides a batch into equal parts, which XLA copies side by side."""
    count = 1
    while images.nbytes > count * _MAX_PART_BYTES and len(images) % (2 * count) == 0:
        count *= 2
    return np.split(images, count)


def choose_options(
    artifact: bytes, weights: Sequence[Any], device: Any, batch: Sequence[Array]
) -> Mapping[str, Any] | None:
    """Finds the fastest options of XLA's compiler for a device, by measurement.

    Args:
        artifact: A module of the graph.
        weights: The further inputs of ``main``, on the device.
        device: A ``jax.Device``.
        batch: Inputs of the module.

    Returns:
        The options; None for XLA's own.
    """
    best = None
    if options := _OPTIONS.get(device.platform):
        usual = load_module(artifact, weights, device)
        try:
            other = load_module(artifact, weights, device, options)
            check_alike(usual(*batch), other(*batch))
            if quickest_s(other, batch, _TIMED_RUNS) < quickest_s(usual, batch, _TIMED_RUNS):
                best = options
        except Exception as error:  # noqa: BLE001 - XLA's own options are always there
            logger.info("XLA's options %s are not used: %s", options, quote(error))
    return best


def in_batches_of(executables: Mapping[int, Executable], batch_size: int) -> Executable:
    """Returns an executable for a batch size that may have none of its own.

    Args:
        executables: The executables by batch size.
        batch_size: The size of the batches. They are padded to the next size, or else divided
            into batches of the largest size, of which the last is padded.
    """
    if batch_size in executables:
        return executables[batch_size]
    step = min((size for size in executables if size > batch_size), default=max(executables))
    execute = executables[step]

    def run(*arrays: Array) -> Sequence[Array]:
        parts = []
        for start in range(0, batch_size, step):
            rows = [array[start : start + step] for array in arrays]
            padding = step - len(rows[0])
            padded = [np.concatenate([each, np.repeat(each[-1:], padding, 0)]) for each in rows]
            outputs = map(np.asarray, execute(*padded))
            parts.append([output[: step - padding] for output in outputs])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    return run


def _may_round() -> bool:
    config: Any = jax.config  # its attributes are made at run time
    return config.jax_default_matmul_precision not in _TRUE_FLOAT32


def _exported(artifact: bytes, signature: Signature, device: Any) -> Any:
    """Returns a ``jax.export.Exported`` of a module: that of any function with its signature."""
    inputs = [
        jax.ShapeDtypeStruct(one.shape, one.dtype)
        for one in (*signature.inputs, *signature.weights)
    ]

    def outputs(*_: Any) -> tuple[Any, ...]:
        return tuple(jnp.zeros(one.shape, one.dtype) for one in signature.outputs)

    platform = "cpu" if device.platform == "cpu" else "cuda"
    export = jax.export.export(jax.jit(outputs, keep_unused=True), platforms=[platform])
    return dataclasses.replace(export(*inputs), mlir_module_serialized=artifact)
