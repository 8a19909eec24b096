"""The batch sizes that are compiled, and the choice of one for a batch."""

from collections.abc import Mapping, Sequence

# Measured times are noisy: to save less than this part of the time, no image waits for another.
_TOLERANCE = 0.01
# What a batch costs beside its run: threads and the event loop, measured on a CPU.
_OVERHEAD_S = 2e-4


def plan_batch(waiting: int, cost_s: Mapping[int, float], busy: float = 1.0) -> tuple[int, int]:
    """Chooses how many of the waiting images go next, and the compiled size to run.

    All images of a batch wait until it ends. What a larger batch saves for each image, all save who
    wait or come before the device is next idle. The chosen size makes the sum the smallest. So
    images go one by one where batches save nothing (most CPUs), in batches that grow with the
    queue where they save a little, and all together where they cost little more than one image
    (a GPU).

    Args:
        waiting: Number of waiting images, at least 1.
        cost_s: Seconds that a batch of each compiled size takes, as measured.
        busy: The part of the recent time in which the device had a batch, 0 to 1.

    Returns:
        How many images to take, and the compiled size to pad them to.
    """
    # With the images that come meanwhile, the device needs 1 / (1 - busy) times as long to be idle
    # as with those that wait. A device that is always busy may just keep up, with a short queue.
    growth = min(waiting, 1 / max(1 - busy, 1e-9))
    saved_by = waiting * (1 + 2 * growth)

    # Times that were not measured are tiny: the overhead must not hide their proportions.
    overhead_s = min(_OVERHEAD_S, *cost_s.values())

    def cost(size: int) -> float:
        """Returns the mean wait, but for a constant factor, if all batches have this size."""
        taken = min(waiting, size)
        batch_s = cost_s[size] + overhead_s
        return batch_s + saved_by * batch_s / taken * (1 + _TOLERANCE * (taken > 1))

    size = min(sorted(cost_s), key=cost)
    return min(waiting, size), size


def check_batch_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns the batch sizes in ascending order, each once.

    Raises:
        ValueError: There are no batch sizes, or one is not positive.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch sizes must be positive and at least one: {list(batch_sizes)}")
    return tuple(sorted(set(batch_sizes)))
