"""The best schedule of batches for images whose arrivals are known beforehand."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from batching_simulation import Device

Times = npt.NDArray[np.float64]


def min_mean_latency_s(arrivals: Sequence[float], device: Device) -> float:
    """Returns the minimum mean latency that any policy can have for these arrivals.

    Images are alike, so some best schedule takes them in the order of arrival, in batches of
    consecutive images. Dynamic programming goes through the images; for each number of images
    that are done it keeps the pairs of (when the device is free, sum of latencies) of which no
    other is better in both. It is exact for a depth of 1. For a greater depth only the
    computing of a batch excludes others, and not their uploads and downloads: a lower bound.

    Args:
        arrivals: The times, ascending, in seconds.
        device: The device; the time of a batch grows with its size.
    """
    before, alone, after = (0.0, 1.0, 0.0) if device.depth == 1 else device.stages
    count, most = len(arrivals), device.max_batch_size
    padded = np.array([device.padded(taken) for taken in range(1, most + 1)])
    cost_s = np.array([device.cost_s[int(size)] for size in padded])
    is_full = padded == np.arange(1, most + 1)
    at = np.append(np.asarray(arrivals, float), np.inf)
    sums = np.concatenate([[0.0], np.cumsum(at[:-1])])
    fronts: list[list[tuple[Times, Times]]] = [[] for _ in range(count + 1)]
    fronts[0].append((np.zeros(1) - np.inf, np.zeros(1)))
    for done in range(count):
        free_at, total = _front(fronts[done])
        fronts[done] = []
        taken = np.arange(1, min(most, count - done) + 1)
        upload, compute = before * cost_s[taken - 1], alone * cost_s[taken - 1]
        ready = at[done + taken - 1] + upload
        # It never pays to leave an image that is there out of a batch that is not full, ...
        last = np.where(is_full[taken - 1], np.inf, at[done + taken] + upload)
        end = np.searchsorted(free_at, last, "left")
        # ... nor to wait while the first image alone could have been computed.
        alone_s = device.cost_s[int(padded[0])]
        begin = np.searchsorted(
            np.maximum(free_at, at[done] + before * alone_s) + alone * alone_s, ready, "right"
        )
        for number in np.flatnonzero((begin < end) | (taken == 1)):
            of = slice(0 if number == 0 else begin[number], end[number])
            ends = np.maximum(free_at[of], ready[number]) + compute[number]
            size = int(taken[number])
            answered = size * (ends + after * cost_s[number]) - (sums[done + size] - sums[done])
            fronts[done + size].append((ends, total[of] + answered))
    return float(_front(fronts[count])[1].min()) / count


def _front(found: Sequence[tuple[Times, Times]]) -> tuple[Times, Times]:
    """Returns the pairs of which no other is better in both, by ascending time."""
    free_at, total = (np.concatenate(values) for values in zip(*found, strict=True))
    order = np.lexsort((total, free_at))
    free_at, total = free_at[order], total[order]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(total)[:-1]])
    kept = total < best_before - 1e-12
    return free_at[kept], total[kept]
