"""Candidates of the graph suite are checked before they are timed."""

import numpy as np
import pytest

from gradcam_server.bench.graph import Answer, Candidate, check, measure
from support.made_up import Ways


def answer(seed: int = 0) -> Answer:
    chance = np.random.default_rng(seed)
    logits = chance.normal(size=(4, 10)).astype(np.float32)
    return Answer(logits, chance.normal(size=(4, 7, 7)).astype(np.float32))


def test_a_wrong_answer_is_reported_and_not_timed() -> None:
    """So is a candidate that fails; the others are timed at every batch size."""
    candidates = [
        Candidate("right", Ways, (0.0,)),
        Candidate("near", Ways, (1e-4,)),
        Candidate("wrong", Ways, (0.1,)),
        Candidate("broken", Ways, (0.0, "no compiler")),
        Candidate("slow", Ways, (0.0,), max_batch_size=1),
    ]
    found = measure(candidates, Candidate("", Ways, (0.0,)), [1, 2], (32, 32), rounds=2)
    rows = {(row["subject"], row["batch_size"]): row for row in found}
    timed = {key for key, row in rows.items() if "ms_per_image" in row}
    assert timed == {("right", 1), ("near", 1), ("slow", 1), ("right", 2), ("near", 2)}
    assert not rows["wrong", 1]["check"]["passed"]
    assert rows["wrong", 1]["check"]["map_error"] == pytest.approx(0.1, rel=0.2)
    assert rows["broken", 2]["failure"] == "ValueError: no compiler"
    assert rows["right", 2]["ratio"]["median"] == 1
    assert rows["near", 1]["base"] == "right"


def test_float32_must_agree_to_rounding_and_a_quantised_model_in_shape() -> None:
    """Correlated maps are enough for a quantised model, but not for float32."""
    right = answer()
    noise = np.random.default_rng(1).normal(size=right.maps.shape)
    near = Answer(right.logits * 1.05, right.maps + 0.1 * noise.astype(np.float32))
    assert not check(near, right, exact=True).passed
    assert check(near, right, exact=False).passed
    assert not check(answer(2), right, exact=False).passed
    assert check(right, right, exact=True).passed


def test_either_of_two_equal_classes_is_right() -> None:
    """Either class of a tie is accepted; maps of different classes are not compared."""
    right = answer()
    right.logits[0, :2] = 5.0
    right.logits[0, 1] += 1e-6
    other = Answer(right.logits.copy(), right.maps.copy())
    other.logits[0, 0] += 2e-6
    other.maps[0] += 1
    found = check(other, right, exact=True)
    assert (found.same_class, found.passed) == (0.75, True)


def test_shapes_must_agree() -> None:
    """Answers of another shape raise an error."""
    right = answer()
    with pytest.raises(ValueError, match="maps of shape"):
        check(Answer(right.logits, right.maps[:, :1]), right, exact=True)
