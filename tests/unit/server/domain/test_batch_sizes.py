"""The choice of a batch size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcam_server.domain.batch_sizes import check_batch_sizes, plan_batch

CPU = {1: 0.028, 2: 0.050, 4: 0.096, 8: 0.190}
GPU = {1: 0.004, 2: 0.004, 4: 0.005, 8: 0.006}


@pytest.mark.parametrize(
    ("cost", "waiting", "expected"),
    [
        (CPU, 1, (1, 1)),
        (CPU, 5, (4, 4)),
        (CPU, 8, (8, 8)),
        (CPU, 100, (8, 8)),
        (GPU, 5, (5, 8)),
        (GPU, 3, (3, 4)),
        ({4: 1.0}, 1, (1, 4)),
        ({2: 1.0, 4: 1.5}, 9, (4, 4)),
        ({1: 1.0, 4: 4.2}, 9, (4, 4)),  # as good as the same
        ({1: 1.0, 4: 6.0}, 9, (4, 4)),  # a full batch is never split up
        ({1: 1.0, 4: 3.2}, 3, (3, 4)),
        ({1: 1.0, 4: 4.0}, 3, (1, 1)),
    ],
)
def test_padding_is_paid_only_where_it_is_cheap(
    cost: dict[int, float], waiting: int, expected: tuple[int, int]
) -> None:
    """Full batches always run; a batch is padded where that serves as many images in a second."""
    assert plan_batch(waiting, cost) == expected


@given(
    waiting=st.integers(1, 300),
    cost=st.dictionaries(st.integers(1, 64), st.floats(1e-4, 10), min_size=1),
)
def test_a_plan_can_always_run(waiting: int, cost: dict[int, float]) -> None:
    """At least one image is taken, and no more than wait or fit in the batch."""
    take, size = plan_batch(waiting, cost)
    assert size in cost
    assert 1 <= take <= min(waiting, size)


def test_batch_sizes_are_sorted_and_each_is_once() -> None:
    """Any order may be configured."""
    assert check_batch_sizes([8, 1, 8, 2]) == (1, 2, 8)


@pytest.mark.parametrize("sizes", [[], [0], [1, -2]])
def test_impossible_batch_sizes_are_refused(sizes: list[int]) -> None:
    """All sizes must be positive, and there must be one."""
    with pytest.raises(ValueError, match="positive"):
        check_batch_sizes(sizes)
