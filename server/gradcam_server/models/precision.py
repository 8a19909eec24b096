"""Mixed precision: layers that compute in fewer bits, with float32 weights."""

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

# A graph for a first answer is traced while another is prepared. A policy belongs to the layer,
# so that both threads would see it.
_USING_LAYERS = threading.RLock()


@contextmanager
def computing_in(precision: Precision, operations: Sequence[Any]) -> Iterator[None]:
    """Has Keras layers compute in a precision while they are called, by one thread at a time.

    Args:
        precision: float32 leaves all as they are.
        operations: Layers and other operations; those compute in what they are given.
    """
    layers = [one for one in operations if isinstance(one, keras.Layer)]
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
