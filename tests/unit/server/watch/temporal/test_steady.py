"""The state of a source over its frames."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from gradcam_server.watch.frames import Pixels
from gradcam_server.watch.stream_state import Choice, StreamState
from gradcam_server.watch.temporal.reuse import ReusePolicy
from gradcam_server.watch.temporal.smoothing import MapSmoother
from gradcam_server.watch.temporal.steady import SteadyStream
from gradcam_server.watch.temporal.target import TargetHold
from support.stream_frames import answer, frame, texture


def run(
    stream: StreamState, images: Sequence[Pixels], best: Sequence[int]
) -> tuple[list[Choice], list[str]]:
    """Explains each frame's held class, else its best one, and returns what was shown."""
    return run_on(stream, 0, images, best)


def run_on(
    stream: StreamState, first: int, images: Sequence[Pixels], best: Sequence[int]
) -> tuple[list[Choice], list[str]]:
    """Goes on with frame number ``first``."""
    choices, shown = [], []
    for number, (image, one) in enumerate(zip(images, best, strict=True), first):
        current = frame(number, image)
        decision = stream.decide(current)
        choices.append(decision.choice)
        found = decision.explanation
        if found is None:
            asked = stream.classes()
            found = answer(one, target=int(asked[0]) if asked else None)
            stream.learn(current, found)
        shown.append(stream.shown(current, found).target)
    return choices, shown


def test_a_held_class_outlasts_single_frames() -> None:
    """The held class is asked for and shown; the new one after two frames in a row."""
    stream = SteadyStream(hold=TargetHold(2))
    _, shown = run(stream, [texture(0)] * 7, [1, 2, 1, 2, 2, 2, 2])
    assert shown == ["1 class 1"] * 5 + ["2 class 2"] * 2


def test_a_cut_starts_afresh() -> None:
    """After a cut the new scene's class is held at once, and its map has no past."""
    stream = SteadyStream(hold=TargetHold(50), smoother=MapSmoother(10))
    dark = np.full((192, 256, 3), 10, np.uint8)
    _, shown = run(stream, [dark] * 3 + [texture(0)] * 3, [1, 1, 1, 2, 2, 2])
    assert shown == ["1 class 1"] * 4 + ["2 class 2"] * 2


def test_a_map_of_another_class_has_no_past() -> None:
    """Heat of the earlier class does not remain in the map of the next one."""
    stream = SteadyStream(smoother=MapSmoother(10))
    heats = [np.diag([1, 1, 0, 0]), np.diag([0, 0, 1, 1])]
    for number, heat in enumerate(heats):
        found = stream.shown(frame(number, texture(0)), answer(number, heat.astype(np.float32)))
    assert found.heat is not None
    assert np.array_equal(found.heat, heats[1])


@pytest.mark.parametrize("reuse", [None, ReusePolicy(2.0)])
@pytest.mark.parametrize("hold", [None, TargetHold(3)])
def test_an_outage_takes_no_memory(hold: TargetHold | None, reuse: ReusePolicy | None) -> None:
    """While every call is late, for a day, memory does not grow."""
    stream, image = SteadyStream(hold=hold, reuse=reuse), texture(0)[:64, :64]

    def fail(numbers: range) -> None:
        for number in numbers:
            stream.decide(frame(number, image))

    fail(range(1000))
    tracemalloc.start()
    try:
        fail(range(1000, 4000))
        grown, _ = tracemalloc.get_traced_memory()
        fail(range(4000, 5000))
        assert tracemalloc.get_traced_memory()[0] < grown + 20_000
    finally:
        tracemalloc.stop()


def test_reuse_follows_the_held_class() -> None:
    """When the held class changes, the next frame is computed for the new class."""
    stream = SteadyStream(hold=TargetHold(1), reuse=ReusePolicy(4, 0))
    images = [texture(0)] * 2 + [np.minimum(texture(0), 235) + np.uint8(20)] * 4
    choices, shown = run(stream, images, [1, 1, 2, 2, 2, 2])
    assert [one.value for one in choices] == [
        "compute",
        "reuse",
        "compute",
        "compute",
        *["reuse"] * 2,
    ]
    assert shown[-3:] == ["2 class 2"] * 3


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_a_new_best_class_is_held_soon_though_the_scene_is_at_rest(frames: int) -> None:
    """Frames are computed until the class is decided; then reuse goes on."""
    stream = SteadyStream(hold=TargetHold(frames), reuse=ReusePolicy(4, 0))
    images = [texture(0)] * 2 + [np.minimum(texture(0), 235) + np.uint8(20)] * (frames + 4)
    choices, shown = run(stream, images, [1] * 2 + [2] * (frames + 4))
    assert shown == ["1 class 1"] * (2 + frames) + ["2 class 2"] * 4
    assert choices[1] is Choice.REUSE
    assert set(choices[2 : 3 + frames]) == {Choice.COMPUTE}
    assert set(choices[3 + frames :]) == {Choice.REUSE}


def test_reuse_goes_on_when_the_held_class_is_the_best_again() -> None:
    """A class that is the best for a moment costs the frames of that moment, and one more."""
    stream = SteadyStream(hold=TargetHold(4), reuse=ReusePolicy(4, 0))
    choices, _ = run(stream, [texture(0)] * 8, [2] * 8)
    assert choices == [Choice.COMPUTE] + [Choice.REUSE] * 7
    bright = np.minimum(texture(0), 235) + np.uint8(20)
    choices, shown = run_on(stream, 8, [bright] * 6, [1, 3, 2, 1, 1, 1])
    assert choices == [Choice.COMPUTE] * 3 + [Choice.REUSE] * 3
    assert set(shown) == {"2 class 2"}


def test_audits_do_not_change_the_held_class() -> None:
    """Which class is held does not depend on which frames were audited."""
    images, best = [texture(0)] * 30, [1] + [2] * 29
    for share in (0.0, 0.5):
        stream = SteadyStream(hold=TargetHold(1), reuse=ReusePolicy(4, share, seed=1))
        _, shown = run(stream, images, best)
        assert set(shown) == {"1 class 1"}


def test_the_given_class_is_asked_for() -> None:
    """Given classes are explained in every frame, and not held besides."""
    assert SteadyStream(["tabby"]).classes() == ("tabby",)
    with pytest.raises(ValueError, match="not both"):
        SteadyStream([1], hold=TargetHold(2))


def test_frames_that_fail_leave_nothing_behind() -> None:
    """Choices of frames without an answer do not pile up."""
    stream = SteadyStream()
    for number in range(0, 1000, 10):
        for failed in range(9):
            stream.decide(frame(number + failed, texture(0, 8, 8)))
        last = frame(number + 9, texture(0, 8, 8))
        stream.decide(last)
        stream.shown(last, answer(1))
    assert not stream._choices
