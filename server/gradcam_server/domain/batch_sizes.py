"""The batch sizes that are compiled, and the choice of one for a batch."""

from collections.abc import Mapping, Sequence

# Times are noisy, and fewer, larger batches have less overhead.
_TOLERANCE = 0.1


def plan_batch(waiting: int, cost_s: Mapping[int, float]) -> tuple[int, int]:
    """Chooses the compiled batch size to run: the next smaller, full, or the next larger, padded.

    The larger is chosen if it serves about as many images in a second. Where padding is
    expensive (a CPU, whose time grows with the batch), 5 waiting images run as 4 and leave 1
    for the next batch; where it is cheap (a GPU) they run as 8.

    Args:
        waiting: Number of waiting images, at least 1.
        cost_s: Seconds that a batch of each compiled size takes, as measured.

    Returns:
        How many images to take, and the compiled size to pad them to.
    """
    full = max((size for size in cost_s if size <= waiting), default=None)
    padded = min((size for size in cost_s if size >= waiting), default=None)
    if full is None or padded is None:
        size = full or padded or 0
    else:
        padded_pays = waiting / cost_s[padded] >= (1 - _TOLERANCE) * full / cost_s[full]
        size = padded if padded_pays else full
    return min(waiting, size), size


def check_batch_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns the batch sizes in ascending order, each once.

    Raises:
        ValueError: There are no batch sizes, or one is not positive.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch sizes must be positive and at least one: {list(batch_sizes)}")
    return tuple(sorted(set(batch_sizes)))
