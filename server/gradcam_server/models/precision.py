"""Mixed precision: layers compute in 16 bits, with float32 weights."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from gradcam_server.domain.options import Precision

_POLICIES = {
    Precision.BFLOAT16: "mixed_bfloat16",
    Precision.FLOAT16: "mixed_float16",
}

# A graph for a first answer is traced while another thread compiles a faster one. The policy
# belongs to the layer, so both threads would see it.
_USING_LAYERS = threading.RLock()


@contextmanager
def computing_in(precision: Precision, operations: Sequence[Any]) -> Iterator[None]:
    """A context in which Keras layers compute in a precision, for one thread at a time.

    Args:
        precision: The precision; float32 changes no layer.
        operations: Layers, and other operations, which compute in the type of their inputs.
    """
    layers = [layer for layer in operations if isinstance(layer, keras.Layer)]
    with _USING_LAYERS:
        if precision is Precision.FLOAT32:
            yield
            return
        before = [layer.dtype_policy for layer in layers]
        try:
            for layer in layers:
                layer.dtype_policy = keras.DTypePolicy(_POLICIES[precision])
            yield
        finally:
            for layer, policy in zip(layers, before, strict=True):
                layer.dtype_policy = policy
