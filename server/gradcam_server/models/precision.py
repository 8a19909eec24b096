"""Mixed precision: layers that compute in fewer bits, with float32 weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from gradcam_server.config import Precision

_POLICIES = {
    Precision.BFLOAT16: "mixed_bfloat16",
    Precision.FLOAT16: "mixed_float16",
}


@contextmanager
def computing_in(precision: Precision, operations: Sequence[Any]) -> Iterator[None]:
    """Has Keras layers compute in a precision while they are called.

    Args:
        precision: float32 leaves all as they are.
        operations: Layers and other operations; those compute in what they are given.
    """
    layers = [one for one in operations if isinstance(one, keras.Layer)]
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
