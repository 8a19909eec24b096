"""The caption over a frame."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from gradcam_server.watch.frames import Frame, FrameResult, Pixels, Status
from gradcam_server.watch.outputs.caption import caption_of, time_of
from gradcam_server.watch.outputs.draw import draw
from support.watch_results import (
    DOG,
    answer,
    explained,
    explanation,
    failed,
    file_frame,
    frame,
    gray,
    noise,
)


def lines_of(result: FrameResult) -> list[str]:
    """The text of the caption's lines."""
    return [str(line) for line in caption_of(result)]


def luminance(image: np.ndarray) -> np.ndarray:
    """The relative luminance of WCAG 2."""
    share = image / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("status", [Status.EXPLAINED, Status.REUSED])
@pytest.mark.parametrize("image", [gray(0), gray(255), gray(128), noise()], ids=str)
@pytest.mark.parametrize("height", [120, 720])
def test_the_caption_is_legible(image: Pixels, status: Status, height: int) -> None:
    """Letters contrast with what is behind them by 4.5:1, as WCAG asks, on any frame."""
    scale = height // 120
    large = np.ascontiguousarray(np.kron(image, np.ones((scale, scale, 1), np.uint8)))
    result = explained(frame(large), status=status, heat=None)
    drawn = draw(result)
    changed = (drawn != large).any(2) if image.std() or image.max() < 250 else drawn[..., 0] < 250
    rows, columns = np.nonzero(changed)
    box = luminance(drawn[rows.min() :, : columns.max() + 1].astype(float))
    letters = box.max()
    background = np.quantile(box, 0.6)  # letters cover less than 40 % of the box
    assert (letters + 0.05) / (background + 0.05) >= 4.5


def test_the_caption_names_class_source_and_time() -> None:
    """A picture that is taken out of the video explains itself."""
    live = frame(source="door", time_s=1.7e9, is_live=True)
    assert lines_of(explained(live)) == ["281 tabby  87.5%", "door  2023-11-14 22:13:20Z"]
    assert lines_of(explained(frame(number=25 * 61))) == ["281 tabby  87.5%", "clip  1:01.0"]
    assert lines_of(explained(file_frame(Path("/in/a.jpg"))))[1] == "inbox  a.jpg"


def test_a_reused_answer_is_marked() -> None:
    """By a word, and by dimmer letters."""
    reused = dataclasses.replace(explained(heat=None), status=Status.REUSED)
    assert lines_of(reused)[1].endswith("reused")
    assert draw(explained(heat=None)).max() > draw(reused).max() + 50


def test_a_failed_frame_says_why() -> None:
    """On one line, shortened if it is long."""
    first, second = lines_of(failed(error="no\nserver " + "x" * 1000))
    assert first.startswith("failed: no server x")
    assert len(first) < 140
    assert second.startswith("clip")


@pytest.mark.parametrize("status", [Status.EXPLAINED, Status.REUSED])
def test_a_class_that_is_not_the_best_is_told_from_it(status: Status) -> None:
    """A held or given class has its low probability beside the best class's."""
    dog = answer(explanations=[explanation(DOG)])
    result = explained(explanation=dog, target="207 golden retriever", status=status)
    assert lines_of(result)[:2] == ["207 golden retriever  6.2%", "best: 281 tabby  87.5%"]
    rare = answer(explanations=[explanation((3, "shark"))])
    result = explained(explanation=rare, target="3 shark", status=status)
    assert lines_of(result)[:2] == ["3 shark", "best: 281 tabby  87.5%"]


LONG = "281 " + "a class with a long name, " * 9


@pytest.mark.parametrize(
    ("size", "result"),
    [
        ((240, 320), explained(target=LONG)),
        ((120, 160), explained(frame(source="the camera above the loading ramp " * 3))),
        ((1080, 1920), explained(target=LONG, status=Status.REUSED)),
        ((240, 320), explained(file_frame(Path("/in") / f"{LONG}.jpg"), status=Status.REUSED)),
    ],
)
def test_a_long_name_is_shortened_before_its_value(
    size: tuple[int, int], result: FrameResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probability, time and "reused" are there on a narrow frame, and all of it is in the frame."""
    written: list[str] = []
    put = cv2.putText

    def note(image: Pixels, text: str, *others: object) -> object:
        written.append(text)
        return put(image, text, *others)  # type: ignore[call-overload]

    monkeypatch.setattr(cv2, "putText", note)
    drawn = draw(dataclasses.replace(result, heat=None, frame=resized(result, size)))
    assert len(written) == 2
    assert any("…" in text for text in written)
    for text, line in zip(written, caption_of(result), strict=True):
        assert text.endswith(line.value)
        assert text[:4] == str(line)[:4]
    changed = np.nonzero((drawn != gray(90, size)).any((0, 2)))[0]
    assert changed.max() < size[1] - 1


def resized(result: FrameResult, size: tuple[int, int]) -> Frame:
    """The frame of a result in another size."""
    return dataclasses.replace(result.frame, image=gray(90, size))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (20, 2000), (2000, 20), (48, 64)])
def test_any_size_of_frame_is_drawn(size: tuple[int, int]) -> None:
    """A caption is shortened or left out where there is no room, and the heat stays visible."""
    long = explained(frame(gray(128, size)), target="1 " + "a very long name of a class " * 9)
    drawn = draw(long)
    assert drawn.shape == (*size, 3)
    upper = drawn[: size[0] // 2]
    without = draw(dataclasses.replace(long, target="", frame=frame(gray(128, size))))
    np.testing.assert_array_equal(upper, without[: size[0] // 2])


@pytest.mark.parametrize(
    ("time_s", "text"),
    [(0, "0:00.0"), (59.97, "0:59.9"), (3599.96, "59:59.9"), (3600, "1:00:00.0")],
)
def test_the_time_of_a_video(time_s: float, text: str) -> None:
    """It never shows 60 seconds."""
    assert time_of(time_s, is_live=False) == text
