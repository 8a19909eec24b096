"""The methods of many passes: from perturbed images to one map for each target.

Each method makes float32 variants of the image and calls ``evaluate`` for each variant, which
runs it through a compiled one-pass graph, in a batch and in the background. The module depends
neither on TensorFlow nor on the batcher.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.layers import Extent
from gradcam_server.images.geometry import enlarge

_I = TypeVar("_I")
_T = TypeVar("_T")

Pixels = NDArray[np.float32]
Maps = NDArray[np.float32]

# Variants of one image that are in memory at once.
_MAX_IN_FLIGHT = 32


async def integrated_gradients(
    image: NDArray[np.uint8], steps: int, evaluate: Callable[[Pixels], Awaitable[Maps]]
) -> Maps:
    """Integrated Gradients from a black image: mean_a g(a x) x, summed over the colours.

    The sum over the positions is score(x) - score(black), up to the error of the midpoint
    rule. Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017,
    equation 3.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        steps: Points of the midpoint rule between black and the image.
        evaluate: Returns gradient times pixels, summed over the colours, float32, shape
            (targets, H, W).

    Returns:
        float32, shape (targets, H, W).
    """
    pixels = image.astype(np.float32)
    points = (np.arange(steps, dtype=np.float32) + np.float32(0.5)) / np.float32(steps)

    async def at(point: np.float32) -> Maps:
        # ``evaluate`` returns g(a x) (a x).
        found = await evaluate(pixels * point)
        with np.errstate(over="ignore"):  # a map that is not finite is degenerate
            return found / point

    maps = await _gather(at, points)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.mean(maps, axis=0, dtype=np.float32)


async def smooth_grad(
    image: NDArray[np.uint8],
    sample_count: int,
    noise_level: float,
    evaluate: Callable[[Pixels], Awaitable[tuple[Maps, ...]]],
) -> tuple[Maps, ...]:
    """SmoothGrad: the mean of the maps of noisy copies.

    The noise is seeded, so the same image has the same map. Smilkov et al., "SmoothGrad:
    removing noise by adding noise", arXiv:1706.03825, 2017.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        sample_count: Number of noisy copies.
        noise_level: Standard deviation of the noise over the range of the pixels.
        evaluate: Returns the maps of each layer, float32, shape (targets, h, w).

    Returns:
        The mean maps of each layer, float32, shape (targets, h, w).
    """
    pixels = image.astype(np.float32)
    deviation = noise_level * float(pixels.max() - pixels.min())

    async def sample(seed: int) -> tuple[Maps, ...]:
        noise = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
        return await evaluate(pixels + np.float32(deviation) * noise)

    samples = await _gather(sample, range(sample_count))
    return tuple(np.mean(maps, axis=0, dtype=np.float32) for maps in zip(*samples, strict=True))


async def score_cam(
    image: NDArray[np.uint8],
    channels: Maps,
    zero: Pixels,
    evaluate: Callable[[Pixels], Awaitable[NDArray[np.float32]]],
    extent: Extent | None = None,
) -> Maps:
    """Score-CAM before its ReLU: sum_k w_k A_k, w = softmax of the masked images' scores.

    Each channel, enlarged and scaled to 0 to 1, masks the image: hidden pixels have the
    colour that preprocessing takes to zero. Wang et al., "Score-CAM: Score-Weighted Visual
    Explanations for Convolutional Neural Networks", CVPR Workshops 2020, algorithm 1.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        channels: A_k, float32, shape (K, h, w). Constant channels are left out.
        zero: The colour that preprocessing takes to zero, float32, shape (3,).
        evaluate: Returns the scores, float32, shape (targets,).
        extent: The part of the image that the channels cover; None is the whole image.

    Returns:
        float32, shape (targets, h, w); zero if all channels are constant.
    """
    pixels = image.astype(np.float32)
    size = (image.shape[0], image.shape[1])
    is_covered = enlarge(np.ones(channels.shape[1:], np.float32), size, extent) > 0

    async def score(channel: Maps) -> NDArray[np.float32]:
        enlarged = enlarge(channel, size, extent)
        minimum, maximum = enlarged[is_covered].min(), enlarged[is_covered].max()
        # A channel can be constant on the image, and vary in margins that the model adds.
        scaled = (enlarged - minimum) / (maximum - minimum or np.float32(1))
        mask = np.where(is_covered, scaled, np.float32(0))[..., None]
        return await evaluate((zero + mask * (pixels - zero)).astype(np.float32))

    varying = channels[np.ptp(channels, axis=(1, 2)) > 0]
    if not len(varying):
        scores = await evaluate(pixels)
        return np.zeros((len(scores), *channels.shape[1:]), np.float32)
    scores = np.stack(await _gather(score, varying))
    exponentials = np.exp(scores - scores.max(axis=0))
    weights = exponentials / exponentials.sum(axis=0)
    return np.einsum("kt,khw->thw", weights, varying).astype(np.float32)


async def _gather(work: Callable[[_I], Awaitable[_T]], items: Iterable[_I]) -> Sequence[_T]:
    """Runs ``work`` for all items, ``_MAX_IN_FLIGHT`` at a time; the first error cancels the rest.

    Returns:
        The results, in the order of the items.
    """
    in_flight = asyncio.Semaphore(_MAX_IN_FLIGHT)

    async def run(item: _I) -> _T:
        async with in_flight:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(item)) for item in items]
    except ExceptionGroup as failures:
        # The items fail for the same reason, and callers expect a single error.
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
