"""Which frames take the last answer."""

from collections.abc import Sequence

import numpy as np
import pytest

from gradcam_server.watch.frames import Pixels
from gradcam_server.watch.stream_state import Choice
from gradcam_server.watch.temporal.reuse import ReusePolicy, change, small_picture
from support.stream_frames import answer, frame, texture

C, R, A = Choice.COMPUTE, Choice.REUSE, Choice.AUDIT


def choices(policy: ReusePolicy, images: Sequence[Pixels]) -> list[Choice]:
    found = []
    for number, image in enumerate(images):
        one = frame(number, image)
        found.append(policy.decide(one).choice)
        if found[-1] is not R:
            policy.learn(one, answer(number))
    return found


def flat(level: int) -> Pixels:
    return np.full((48, 64, 3), level, np.uint8)


def test_a_frame_that_hardly_changes_takes_the_last_answer() -> None:
    """Below the threshold the same answer comes again, above it the frame is computed."""
    policy = ReusePolicy(4, 0)
    first, second, third = frame(0, flat(100)), frame(1, flat(103)), frame(2, flat(105))
    assert policy.decide(first).choice is C
    policy.learn(first, kept := answer(7))
    decision = policy.decide(second)
    assert (decision.choice, decision.explanation) == (R, kept)
    assert policy.decide(third).choice is C


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_slow_fade_does_not_slip_through(step: int) -> None:
    """The change counts from the last computed frame, however little each frame changes."""
    found = choices(ReusePolicy(4, 0), [flat(50 + step * n) for n in range(40)])
    assert found == [C if n % (4 // step + 1) == 0 else R for n in range(40)]


def test_a_small_object_counts() -> None:
    """A change of one hundredth of the picture is seen, noise of the camera is not."""
    image = texture(1)
    random = np.random.default_rng(0)
    noisy = np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    other = image.copy()
    other[80:99, 100:125] = 255 - other[80:99, 100:125] // 4
    at_rest = change(small_picture(image), small_picture(noisy))
    assert at_rest < 4 < change(small_picture(image), small_picture(other))


def test_an_answer_is_not_kept_for_long() -> None:
    """A scene at rest is computed again after the highest age."""
    found = choices(ReusePolicy(4, 0, max_age_s=1.0), [flat(9)] * 25)
    assert [n for n, one in enumerate(found) if one is C] == [0, 11, 22]


def test_another_shape_is_computed() -> None:
    """After another resolution, or a clock that went back, nothing is reused."""
    policy = ReusePolicy(255, 0)
    assert choices(policy, [flat(1), flat(1)[:40]]) == [C, C]
    assert policy.decide(frame(-5, flat(1)[:40])).choice is C


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_audits_change_no_decision(share: float) -> None:
    """Without regard to chance the same frames are computed, and the same answers reused."""
    images = [flat(50 + n // 2) for n in range(200)]
    plain = choices(ReusePolicy(4, 0), images)
    for seed in range(5):
        policy = ReusePolicy(4, share, seed=seed)
        found = choices(policy, images)
        assert [one is C for one in found] == [one is C for one in plain]
        audits = found.count(A)
        assert (audits, policy.audit.reused) == (policy.audit.audited, found.count(R))
        assert abs(audits - share * plain.count(R)) < 4 * np.sqrt(200 * share * (1 - share)) + 1


def test_an_audit_compares_with_the_kept_answer() -> None:
    """Best class and map are those of the answer that reuse would give, which stays."""
    policy = ReusePolicy(4, 1.0)
    heats = [np.eye(4), np.eye(4), np.eye(4)[::-1]]
    for number, (best, heat) in enumerate(zip([1, 1, 2], heats, strict=True)):
        one = frame(number, flat(10))
        assert policy.decide(one).choice is (A if number else C)
        policy.learn(one, answer(best, heat.astype(np.float32)))
    assert (policy.audit.audited, policy.audit.missed) == (2, 1)
    assert policy.audit.correlation.value == pytest.approx(0.5)


def test_answers_may_come_late_and_out_of_order() -> None:
    """An older answer replaces no newer one; frames are computed until the first one is there."""
    policy = ReusePolicy(4, 0)
    frames = [frame(number, flat(10)) for number in range(4)]
    assert [policy.decide(one).choice for one in frames[:2]] == [C, C]
    policy.learn(frames[1], newer := answer(1))
    policy.learn(frames[0], answer(0))
    assert policy.decide(frames[2]).explanation is newer


def test_failed_calls_leave_nothing_behind() -> None:
    """Thousands of frames without an answer take no memory, and are not reused."""
    policy = ReusePolicy(4, 0)
    assert {policy.decide(frame(n, flat(10))).choice for n in range(2000)} == {C}
    assert len(policy._asked) <= 256


def test_what_is_forgotten_is_computed() -> None:
    """After the class has changed, the next frame is computed."""
    policy = ReusePolicy(4, 0)
    choices(policy, [flat(10)])
    policy.forget()
    assert policy.decide(frame(1, flat(10))).choice is C


@pytest.mark.parametrize(("threshold", "share"), [(-1, 0.1), (1, -0.1), (1, 1.1), (np.nan, 0.1)])
def test_values_out_of_range_are_refused(threshold: float, share: float) -> None:
    """The error names the value and the range."""
    with pytest.raises(ValueError, match="not "):
        ReusePolicy(threshold, share)
