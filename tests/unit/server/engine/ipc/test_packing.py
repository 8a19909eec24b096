"""Outputs on their way to a front end."""

from itertools import pairwise

import numpy as np
import pytest

from gradcam_server.domain.graph_io import GraphOutput
from gradcam_server.engine.ipc.packing import pack, unpack


def output(seed: int, targets: int, layers: int = 1, channels: int = 0) -> GraphOutput:
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> np.ndarray:
        return rng.random(shape, dtype=np.float32)

    shapes = [(channels or targets, 2 + layer, 3) for layer in range(layers)]
    classes = rng.integers(0, 9, targets, dtype=np.int32)
    return GraphOutput(
        floats(5), floats(5), classes, floats(targets), tuple(floats(*shape) for shape in shapes)
    )


@pytest.mark.parametrize(
    "outputs",
    [
        [output(0, 1)],
        [output(seed, seed % 3) for seed in range(7)],
        [output(seed, 2, layers=3) for seed in range(4)],
        [output(seed, 1 + seed, layers=2, channels=6) for seed in range(3)],
        [output(seed, 0, layers=0) for seed in range(2)],
    ],
    ids=["one", "0 to 2 targets", "3 layers", "channels", "prediction alone"],
)
def test_outputs_are_the_same_when_unpacked(outputs: list[GraphOutput]) -> None:
    """Each image gets its own classes, scores and maps, of their own number, shape and dtype."""
    unpacked = list(unpack(pack(outputs)))
    assert len(unpacked) == len(outputs)
    for got, expected in zip(unpacked, outputs, strict=True):
        for name in ("logits", "probabilities", "classes", "scores"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), strict=True)
        assert len(got.maps) == len(expected.maps)
        for one, other in zip(got.maps, expected.maps, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)


def test_unpacked_outputs_do_not_share_memory() -> None:
    """An answer that is kept long does not keep its whole batch in memory."""
    outputs = list(unpack(pack([output(seed, 2) for seed in range(3)])))
    arrays = [array for one in outputs for array in (one.logits, one.scores, *one.maps)]
    assert all(array.base is None for array in arrays)
    assert not any(np.shares_memory(one, other) for one, other in pairwise(arrays))
