"""The choice of a batch size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcam_server.domain.batch_sizes import check_batch_sizes, plan_batch

# ResNet50 and EfficientNet-Lite0 on a CPU, and ResNet50 on a GPU.
CPU = {1: 0.0171, 2: 0.034, 4: 0.0675, 8: 0.1336}
SMALL = {1: 0.005, 2: 0.0086, 4: 0.0156, 8: 0.03}
GPU = {1: 0.00186, 8: 0.0019, 32: 0.0022, 128: 0.0046, 256: 0.0084}


@pytest.mark.parametrize(
    ("cost", "waiting", "busy", "expected"),
    [
        (CPU, 8, 0.5, (1, 1)),
        (CPU, 16, 0.5, (1, 1)),
        ({1: 1.0, 8: 8.0}, 1000, 1.0, (1, 1)),
        ({1: 1.0, 8: 7.93}, 1000, 1.0, (1, 1)),
        ({1: 1.0, 4: 6.0}, 9, 1.0, (1, 1)),
        ({1: 1.0, 4: 3.2}, 3, 1.0, (1, 1)),
    ],
)
def test_images_go_one_by_one_where_batches_do_not_pay(
    cost: dict[int, float], waiting: int, busy: float, expected: tuple[int, int]
) -> None:
    """The first does not wait for the last, whatever the noise of the measurements."""
    assert plan_batch(waiting, cost, busy) == expected


@pytest.mark.parametrize(
    ("cost", "waiting", "busy", "expected"),
    [
        (GPU, 3, 0.1, (3, 8)),
        (GPU, 20, 0.5, (20, 32)),
        (GPU, 128, 0.5, (128, 128)),
        (GPU, 5000, 1.0, (256, 256)),
        ({1: 0.004, 2: 0.004, 4: 0.005, 8: 0.006}, 7, 0.0, (7, 8)),
        ({4: 1.0}, 1, 0.0, (1, 4)),
        ({2: 1.0, 4: 1.5}, 9, 0.0, (4, 4)),
    ],
)
def test_all_images_go_where_batches_pay(
    cost: dict[int, float], waiting: int, busy: float, expected: tuple[int, int]
) -> None:
    """They are padded to the next size, as that costs little more."""
    assert plan_batch(waiting, cost, busy) == expected


@pytest.mark.parametrize(
    ("cost", "waiting", "busy", "expected"),
    [
        (SMALL, 2, 0.1, 2),
        (SMALL, 16, 0.1, 4),
        (SMALL, 16, 1.0, 8),
        (CPU, 20, 0.1, 1),
        (CPU, 20, 1.0, 8),
        (GPU, 250, 0.1, 128),
        (GPU, 250, 1.0, 250),
    ],
)
def test_batches_that_save_a_little_grow_with_the_load(
    cost: dict[int, float], waiting: int, busy: float, expected: int
) -> None:
    """Time that is saved on a busy device is saved for the images that come later, too."""
    assert plan_batch(waiting, cost, busy)[0] == expected


@given(
    waiting=st.integers(1, 300),
    cost=st.dictionaries(st.integers(1, 64), st.floats(1e-4, 10), min_size=1),
    busy=st.floats(0, 1),
)
def test_a_plan_can_always_run(waiting: int, cost: dict[int, float], busy: float) -> None:
    """At least one image is taken, and no more than wait or fit in the batch."""
    take, size = plan_batch(waiting, cost, busy)
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
