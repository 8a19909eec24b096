"""The methods of many passes, on functions whose maps are known."""

import asyncio

import numpy as np
import pytest

from gradcam_server.domain.layers import Extent
from gradcam_server.errors import EngineLostError
from gradcam_server.methods.many_pass import (
    Maps,
    Pixels,
    integrated_gradients,
    score_cam,
    smooth_grad,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=(2, 6, 5, 3)).astype(np.float32) / 1000


async def test_integrated_gradients_of_a_cubic_are_complete() -> None:
    """The map sums to score(image) - score(black), and each pixel has its own exact share."""

    async def gradient_times_pixels(pixels: Pixels) -> Maps:
        return (3 * WEIGHTS * pixels**2 * pixels).sum(axis=-1)  # score = sum w x^3

    maps = await integrated_gradients(IMAGE, 64, gradient_times_pixels)
    exact = (WEIGHTS * IMAGE.astype(np.float64) ** 3).sum(axis=-1)
    assert maps.shape == (2, 6, 5)
    np.testing.assert_allclose(maps, exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max())
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), exact.sum(axis=(1, 2)), rtol=2e-3)


async def test_more_steps_come_nearer() -> None:
    """The midpoint rule's error falls with the square of the steps."""

    async def gradient_times_pixels(pixels: Pixels) -> Maps:
        return (3 * WEIGHTS * pixels**3).sum(axis=-1)

    exact = (WEIGHTS * IMAGE.astype(np.float64) ** 3).sum(axis=-1)
    errors = [
        np.abs(await integrated_gradients(IMAGE, steps, gradient_times_pixels) - exact).max()
        for steps in (4, 16)
    ]
    assert errors[1] < errors[0] / 10


async def test_smooth_grad_is_the_mean_and_repeats_itself() -> None:
    """SmoothGrad of a linear map is that map; the noise is the same each time."""
    seen: list[Pixels] = []

    async def linear(pixels: Pixels) -> tuple[Maps, ...]:
        seen.append(pixels)
        return (pixels.mean(axis=-1)[None], pixels[None, :2, :2, 0])

    first = await smooth_grad(IMAGE, 200, 0.1, linear)
    again = await smooth_grad(IMAGE, 200, 0.1, linear)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    noise = np.stack(seen[:200]) - IMAGE
    level = 0.1 * (float(IMAGE.max()) - IMAGE.min())
    assert noise.std() == pytest.approx(level, rel=0.05)
    np.testing.assert_allclose(first[0][0], IMAGE.mean(axis=-1), atol=5 * level / np.sqrt(200))


async def test_score_cam_weighs_channels_by_what_they_show() -> None:
    """The channel whose mask keeps the evidence has the weight."""
    channels = np.zeros((3, 6, 5), np.float32)
    channels[0, :2], channels[1, 4:] = 1.0, 7.0  # channel 2 is constant: left out
    zero = np.array([10.0, 20.0, 30.0], np.float32)
    image = np.full((6, 5, 3), 200, np.uint8)

    async def top_rows(pixels: Pixels) -> np.ndarray:
        return np.array([pixels[:2].mean() / 10, pixels[4:].mean() / 10], np.float32)

    maps = await score_cam(image, channels, zero, top_rows)
    assert maps.shape == (2, 6, 5)
    assert maps[0, 0, 0] == pytest.approx(1.0, abs=1e-3)
    assert maps[0, 5, 0] == pytest.approx(0.0, abs=1e-3)
    assert maps[1, 5, 0] == pytest.approx(7.0, abs=1e-2)


async def test_score_cam_masks_towards_zero_of_the_network() -> None:
    """Hidden pixels have the colour that preprocessing takes to zero."""
    channel = np.zeros((1, 6, 5), np.float32)
    channel[0, 0, 0] = 3.0
    zero = np.array([10.0, 20.0, 30.0], np.float32)
    seen: list[Pixels] = []

    async def note(pixels: Pixels) -> np.ndarray:
        seen.append(pixels)
        return np.zeros(1, np.float32)

    await score_cam(IMAGE, channel, zero, note)
    np.testing.assert_allclose(seen[0][0, 0], IMAGE[0, 0], atol=1e-3)
    np.testing.assert_allclose(seen[0][5, 4], zero, atol=1e-3)


async def test_score_cam_masks_what_the_channels_cover() -> None:
    """A channel of a crop masks that crop; pixels that the network does not see are hidden."""
    channel = np.array([[[3.0, -1.0], [-1.0, -1.0]]], np.float32)
    zero = np.array([10.0, 20.0, 30.0], np.float32)
    seen: list[Pixels] = []

    async def note(pixels: Pixels) -> np.ndarray:
        seen.append(pixels)
        return np.zeros(1, np.float32)

    await score_cam(IMAGE, channel, zero, note, Extent(2, 1, 2, 2))
    expected = np.broadcast_to(zero, IMAGE.shape).copy()
    expected[2, 1] = IMAGE[2, 1]
    np.testing.assert_allclose(seen[0], expected, atol=1e-3)


async def test_constant_channels_give_a_zero_map() -> None:
    """Without a varying channel the map is zero, not NaN."""

    async def score(_: Pixels) -> np.ndarray:
        return np.ones(4, np.float32)

    maps = await score_cam(IMAGE, np.ones((5, 3, 3), np.float32), np.zeros(3, np.float32), score)
    assert maps.shape == (4, 3, 3)
    assert not maps.any()


async def test_few_variants_are_in_memory_at_once() -> None:
    """A request of many passes holds a bounded number of images."""
    now, maximum = 0, 0

    async def count(pixels: Pixels) -> Maps:
        nonlocal now, maximum
        now += 1
        maximum = max(maximum, now)
        await asyncio.sleep(0.001)
        now -= 1
        return pixels[None, ..., 0]

    await integrated_gradients(IMAGE, 200, count)
    assert 1 < maximum <= 32


async def test_one_error_ends_all_passes_and_arrives_as_it_is() -> None:
    """The first error is raised itself, not as a group; calls that have not begun are cancelled."""
    begun = 0

    async def fail(pixels: Pixels) -> Maps:
        nonlocal begun
        begun += 1
        await asyncio.sleep(0)
        raise EngineLostError("lost", 3.0)

    with pytest.raises(EngineLostError) as caught:
        await integrated_gradients(IMAGE, 256, fail)
    assert caught.value.retry_after_s == 3.0
    assert begun < 256
