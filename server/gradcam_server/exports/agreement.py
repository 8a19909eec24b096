"""Compares the answers of a reduced precision with those of float32."""

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.graph_io import NO_CLASS, by_rank
from gradcam_server.exports.manifest import Agreement
from gradcam_server.graphs.executable import Array, Executable

_PERCENTILES = (1, 5, 25, 50)


def measure(
    reduced: Executable, exact: Executable, images: NDArray[np.uint8], targets: int, origin: str
) -> Agreement:
    """Compares two graphs that differ in precision: their logits, and the maps of the first layer.

    Both maps are of the class that is best in float32, after the ReLU, as users see them.

    Args:
        reduced: The graph in the reduced precision.
        exact: The graph in float32.
        images: uint8, shape (N, H, W, 3).
        targets: The number of targets of the graphs.
        origin: The origin of the images, in words.
    """
    same, correlations, differences = [], [], []
    for image in images:
        ranks = np.full((1, targets), by_rank(0), np.int32)
        nothing = np.full_like(ranks, NO_CLASS)
        expected_logits, _, classes, _, expected_maps, *_ = exact(image[None], ranks, nothing)
        logits, _, _, _, maps, *_ = reduced(image[None], classes, nothing)
        same.append(int(logits[0].argmax()) == int(expected_logits[0].argmax()))
        differences.append(float(np.abs(logits - expected_logits).max()))
        correlations.append(correlation(maps[0, 0], expected_maps[0, 0]))
    low = np.percentile(correlations, _PERCENTILES)
    return Agreement(
        image_count=len(images),
        top1_percent=round(100 * float(np.mean(same)), 2),
        correlation_mean=round(float(np.mean(correlations)), 5),
        correlation_percentiles={
            str(rank): round(float(value), 5) for rank, value in zip(_PERCENTILES, low, strict=True)
        },
        correlation_worst=round(min(correlations), 5),
        largest_logit_difference=round(max(differences), 4),
        images=origin,
    )


def correlation(map_: Array, expected: Array) -> float:
    """Returns Pearson's correlation of two maps after their ReLU; 0 if only one is empty."""
    x, y = (np.maximum(np.asarray(values, np.float64), 0).ravel() for values in (map_, expected))
    if not (x.std() and y.std()):
        return float(x.std() == y.std())
    return float(np.corrcoef(x, y)[0, 1])
