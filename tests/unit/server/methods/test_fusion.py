"""Fusion of the maps of several layers."""

import numpy as np
import pytest

from gradcam_server.methods.fusion import fuse_layer_cam


def test_the_finest_resolution_and_the_greatest_value_win() -> None:
    """The coarse map is only enlarged; tanh(2 M) is applied to the fine map."""
    fine = np.zeros((4, 4), np.float32)
    fine[0, 0], fine[3, 3] = 2.0, 1.0
    coarse = np.array([[0.0, 0.0], [0.0, 8.0]], np.float32)
    fused = fuse_layer_cam([fine, coarse])
    assert fused.shape == (4, 4)
    assert fused[0, 0] == pytest.approx(np.tanh(2.0))
    assert fused[3, 3] == pytest.approx(1.0)  # the coarse one's maximum
    assert fused[0, 3] < fused[2, 3] <= 1


def test_negative_and_broken_maps_count_for_nothing() -> None:
    """A layer without a positive value changes nothing."""
    good = np.array([[0.0, 3.0]], np.float32)
    for useless in (np.full((1, 2), -5.0), np.zeros((1, 2)), np.full((1, 2), np.nan)):
        fused = fuse_layer_cam([good, useless.astype(np.float32)])
        np.testing.assert_array_equal(fused, [[0, 1]])
    assert not fuse_layer_cam([np.zeros((2, 2), np.float32)]).any()


def test_the_order_of_layers_does_not_matter() -> None:
    """Fusion takes the maximum at each position."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(n, n)).astype(np.float32) for n in (3, 6, 12)]
    np.testing.assert_array_equal(fuse_layer_cam(maps), fuse_layer_cam(maps[::-1]))
