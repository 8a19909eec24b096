"""Subjects take turns."""

import time

import pytest

from gradcam_server.bench.interleave import interleave, turns


def test_each_subject_has_one_turn_in_each_round() -> None:
    """The orders differ, so that no subject always follows the same other subject."""
    order = list(turns("abcd", 20))
    rounds = [[name for number, name in order if number == one] for one in range(20)]
    assert all(sorted(names) == list("abcd") for names in rounds)
    assert len({tuple(names) for names in rounds}) > 10


def test_measurements_of_one_round_are_at_one_place() -> None:
    """The nth values of all subjects are of the nth round."""
    clock = iter(range(100))
    found = interleave({name: lambda: next(clock) for name in "ab"}, 3)
    assert [{found["a"][n], found["b"][n]} for n in range(3)] == [{0, 1}, {2, 3}, {4, 5}]


@pytest.mark.parametrize(("within_s", "rounds"), [(0, 1), (39, 1), (41, 2), (100, 5), (1000, 8)])
def test_no_round_begins_that_would_end_too_late(
    within_s: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first always runs; the others if they end in time, as long as the longest before."""
    now = 0.0

    def measure() -> None:
        nonlocal now
        now += 10

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    found = interleave({"a": measure, "b": measure}, 8, within_s=within_s)
    assert len(found["a"]) == len(found["b"]) == rounds
