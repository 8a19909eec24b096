"""JAX's runtime (PJRT) runs StableHLO modules on CPUs and GPUs. Free of TensorFlow."""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from gradcam_server.domain.options import Precision
from gradcam_server.graphs.compilers.pjrt_modules import (
    Signature,
    read_signature,
    with_fast_products,
)
from gradcam_server.graphs.executable import Array, Executable

# Values of jax_default_matmul_precision that mean true float32; None is the default.
_TRUE_FLOAT32 = {None, "highest", "float32"}

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


def load_module(artifact: bytes, weights: Sequence[Any], device: Any) -> Executable:
    """Makes an executable of a module. XLA compiles it at its first run.

    Args:
        artifact: A module that ``read_signature`` takes.
        weights: The further inputs of ``main``, on the device.
        device: A ``jax.Device``.
    """
    signature = read_signature(artifact)
    if _may_round():
        artifact = with_fast_products(artifact)
    function = jax.jit(_exported(artifact, signature, device).call)

    def run(*arrays: Array) -> Sequence[Array]:
        inputs = jax.device_put(arrays, device)
        return [np.asarray(output) for output in jax.device_get(function(*inputs, *weights))]

    return run


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
            parts.append([output[: step - padding] for output in execute(*padded)])
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
