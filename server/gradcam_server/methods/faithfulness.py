"""Metrics of how faithful heat maps are to the model, in NumPy.

    image, heat map -> perturbed images -> the caller's model -> probabilities -> metric

``image`` is uint8 (H, W, 3) and ``heatmap`` a finite float array (H, W). Pixels of equal heat
are ordered row by row, so results are reproducible. A heat map without a positive value is
degenerate: the curves take its pixels in order, and it hits no mask.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DEFAULT_STEPS = 20
# Standard deviation, as a share of height and width, that makes an object unrecognisable.
_BLUR = 0.05

Baseline = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Makes the uninformative image, uint8 (H, W, 3), that replaces the pixels of an image."""


def blurred(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blurs an image by a Gaussian of 5 % of its height and width, with replicated borders."""
    height, width, _ = image.shape
    rows, columns = _blur_matrix(height), _blur_matrix(width)
    mixed = np.einsum("yi,ijc->yjc", rows, image.astype(np.float32), optimize=True)
    mixed = np.einsum("xj,yjc->yxc", columns, mixed, optimize=True)
    return np.rint(mixed).astype(np.uint8)


def mean_color(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns an image of the size of another, filled with the other's mean colour."""
    color = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
    return np.broadcast_to(color, image.shape)


BASELINES: dict[str, Baseline] = {"blur": blurred, "mean": mean_color}


def is_degenerate(heatmap: NDArray[np.floating[Any]]) -> bool:
    """Returns whether no value of the map is positive."""
    return not bool((heatmap > 0).any())


def hottest_first(heatmap: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Orders pixels by decreasing heat.

    Returns:
        Indices into the flattened map, shape (H * W,); pixels of equal heat row by row.
    """
    return np.argsort(-heatmap, axis=None, kind="stable")


def deletion_images(
    image: NDArray[np.uint8],
    heatmap: NDArray[np.floating[Any]],
    steps: int = DEFAULT_STEPS,
    baseline: Baseline = mean_color,
) -> Iterator[NDArray[np.uint8]]:
    """Removes the pixels of an image, hottest first, in equal portions.

    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018, section 4.2: the class's probability should fall at once, so a low ``auc``
    is good. The paper removes to a constant colour.

    Args:
        image: uint8, shape (H, W, 3).
        heatmap: Shape (H, W).
        steps: Number of portions.
        baseline: Makes the image that replaces removed pixels.

    Yields:
        ``steps + 1`` images: first the original, last the baseline.
    """
    yield from _replaced(image, baseline(image), heatmap, steps)


def insertion_images(
    image: NDArray[np.uint8],
    heatmap: NDArray[np.floating[Any]],
    steps: int = DEFAULT_STEPS,
    baseline: Baseline = blurred,
) -> Iterator[NDArray[np.uint8]]:
    """Inserts the pixels of an image into a baseline, hottest first, in equal portions.

    Petsiuk et al., RISE, BMVC 2018, section 4.2: the class's probability should rise at
    once, so a high ``auc`` is good. The paper inserts into the blurred image.

    Args:
        image: uint8, shape (H, W, 3).
        heatmap: Shape (H, W).
        steps: Number of portions.
        baseline: Makes the image into which the pixels are inserted.

    Yields:
        ``steps + 1`` images: first the baseline, last the original.
    """
    yield from _replaced(baseline(image), image, heatmap, steps)


def auc(probabilities: ArrayLike) -> float:
    """Area under a deletion or insertion curve, by trapezoids over a width of 1.

    Args:
        probabilities: The class's probability on each image, shape (steps + 1,).

    Returns:
        The area, 0 to 1.

    Raises:
        ValueError: There are fewer than two probabilities.
    """
    curve = np.asarray(probabilities, np.float64)
    if curve.ndim != 1 or curve.size < 2:
        raise ValueError(f"a curve needs two points or more, not shape {curve.shape}")
    return float((curve[:-1] + curve[1:]).mean() / 2)


def explanation_map(
    image: NDArray[np.uint8], heatmap: NDArray[np.floating[Any]]
) -> NDArray[np.uint8]:
    """Multiplies an image by its heat map, so that cold pixels are black.

    Chattopadhay et al., "Grad-CAM++", WACV 2018, section 4.1.

    Args:
        image: uint8, shape (H, W, 3).
        heatmap: Shape (H, W); negative values count as 0, and it is divided by its maximum.

    Returns:
        uint8, shape (H, W, 3); black for a degenerate map.
    """
    _check(image, heatmap)
    if is_degenerate(heatmap):
        return np.zeros_like(image)
    shown = np.maximum(heatmap, 0) / heatmap.max()
    return np.rint(image * shown[..., np.newaxis]).astype(np.uint8)


def average_drop(full: ArrayLike, explained: ArrayLike) -> float:
    """Mean of max(0, Y - O) / Y over images, in per cent; low is good.

    Chattopadhay et al., Grad-CAM++, WACV 2018, section 4.1.

    Args:
        full: Y, the class's probability on each full image, shape (N,) or a number. Where
            it is 0 the drop is 0.
        explained: O, on each ``explanation_map``, of the same shape.
    """
    before, after = np.asarray(full, np.float64), np.asarray(explained, np.float64)
    drop = np.maximum(before - after, 0) / np.where(before > 0, before, 1)
    return float(100 * drop.mean())


def increase_in_confidence(full: ArrayLike, explained: ArrayLike) -> float:
    """Share of images with O > Y, in per cent; high is good.

    Chattopadhay et al., Grad-CAM++, WACV 2018, section 4.1.

    Args:
        full: Y, the class's probability on each full image, shape (N,) or a number.
        explained: O, on each ``explanation_map``, of the same shape.
    """
    return float(100 * np.mean(np.asarray(explained) > np.asarray(full)))


def points_at(heatmap: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> bool:
    """Pointing game: returns whether the hottest pixel is inside the mask.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, section 4.1;
    without the margin of 15 pixels that some programs allow. False for a degenerate map.

    Args:
        heatmap: Shape (H, W).
        mask: True on the object, shape (H, W).
    """
    _check(mask, heatmap)
    return not is_degenerate(heatmap) and bool(mask.flat[np.argmax(heatmap)])


def energy_inside(heatmap: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> float:
    """Energy-based pointing game: the share of the heat that is inside the mask.

    Wang et al., "Score-CAM", CVPR Workshops 2020, section 4.3.

    Args:
        heatmap: Shape (H, W); negative values count as 0.
        mask: True on the object, shape (H, W).

    Returns:
        0 to 1; 0 for a degenerate map.
    """
    _check(mask, heatmap)
    heat = np.maximum(heatmap, 0).astype(np.float64)
    return 0.0 if is_degenerate(heatmap) else float(heat[mask].sum() / heat.sum())


def _replaced(
    start: NDArray[np.uint8],
    end: NDArray[np.uint8],
    heatmap: NDArray[np.floating[Any]],
    steps: int,
) -> Iterator[NDArray[np.uint8]]:
    _check(start, heatmap)
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps}")
    order = hottest_first(heatmap)
    ends = np.rint(np.linspace(0, order.size, steps + 1)).astype(np.intp)
    pixels, replacement = start.reshape(-1, 3).copy(), end.reshape(-1, 3)
    for done, now in zip((0, *ends), ends, strict=False):
        portion = order[done:now]
        pixels[portion] = replacement[portion]
        yield pixels.reshape(start.shape).copy()


def _check(pixels: NDArray[Any], heatmap: NDArray[np.floating[Any]]) -> None:
    if pixels.shape[:2] != heatmap.shape:
        raise ValueError(f"the heat map is {heatmap.shape} for pixels of {pixels.shape[:2]}")
    if not np.isfinite(heatmap).all():
        raise ValueError("the heat map has values that are not finite")


def _blur_matrix(size: int) -> NDArray[np.float32]:
    # Row y holds the weight of each pixel in the blurred pixel y. The border pixel also has
    # the Gaussian's weights beyond the border.
    sigma = max(_BLUR * size, 0.5)
    reach = int(np.ceil(3 * sigma))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size, size), np.float32)
    rows = np.arange(size)
    for offset, weight in zip(offsets, weights, strict=True):
        matrix[rows, np.clip(rows + offset, 0, size - 1)] += np.float32(weight)
    return matrix
