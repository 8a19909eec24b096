"""Keras in float64: in float32 the order of summation decides which way some ReLUs fall."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras


@contextmanager
def in_float64() -> Iterator[None]:
    """Models that are built or run within compute in float64."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
