"""The roofline: a model's arithmetic and memory traffic."""

import keras
import pytest

from gradcam_server.bench.roofline import Speed, Work, count_work, roofline_ms


def test_work_is_counted_layer_by_layer() -> None:
    """The counts equal those by hand: kernels times positions, multiplication and addition."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, strides=2, padding="same"),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )
    work = count_work(model)
    assert work.flop == 2 * (16 * 3 * 3 * 3 * 4 + 16 * 3 * 3 * 4 + 4 * 5)
    assert work.weight_bytes == 4 * model.count_params()
    assert work.activation_bytes == 4 * (8 * 8 * 3 + 3 * 16 * 4 + 4 + 5)


def test_a_larger_batch_shares_the_weights() -> None:
    """The arithmetic per image is constant; the bytes per image shrink."""
    work, speed = Work(2e9, 1e8, 1e7), Speed(1e12, 1e11)
    one, many = roofline_ms(work, speed, 1), roofline_ms(work, speed, 10)
    assert one == pytest.approx({"arithmetic": 2.0, "bytes": 1.1})
    assert many == pytest.approx({"arithmetic": 2.0, "bytes": 0.2})
