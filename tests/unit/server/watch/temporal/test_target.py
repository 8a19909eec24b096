"""The class that is held."""

from collections.abc import Sequence

import pytest

from gradcam_server.watch.temporal.target import TargetHold


def held(frames: int, best: Sequence[int]) -> list[int]:
    hold = TargetHold(frames)
    return [hold.choose(one) for one in best]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ([1, 2, 1, 2, 2, 1], [1, 1, 1, 1, 1, 1]),
        ([1, 2, 2, 2, 2], [1, 1, 1, 2, 2]),
        ([1, 2, 3, 2, 3, 3, 3], [1, 1, 1, 1, 1, 1, 3]),
        ([1, 2, 2, 2, 1, 1, 2], [1, 1, 1, 2, 2, 2, 2]),
    ],
)
def test_a_class_is_held_until_another_one_lasts(best: list[int], expected: list[int]) -> None:
    """Only three frames in a row with the same other class change the target."""
    assert held(3, best) == expected


def test_one_frame_follows_every_change() -> None:
    """A hold of one frame holds nothing."""
    assert held(1, [4, 5, 4, 6]) == [4, 5, 4, 6]


def test_a_reset_takes_the_next_best_class() -> None:
    """After a cut the next frame's best class is the target at once, without old counts."""
    hold = TargetHold(2)
    hold.choose(1)
    hold.choose(2)
    hold.reset()
    assert hold.target is None
    assert [hold.choose(2), hold.choose(1), hold.choose(2)] == [2, 2, 2]


def test_a_hold_without_frames_is_refused() -> None:
    """The error says what would be right."""
    with pytest.raises(ValueError, match="1 frame or more, not 0"):
        TargetHold(0)
