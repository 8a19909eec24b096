"""Writes the caption over a frame: what is explained, and from where and when the frame is."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2

from gradcam_server.watch.frames import FrameResult, Pixels, Status
from gradcam_server.watch.outputs.explained import explanation_of, probability_of

# Of the frame's shorter side; but letters are never smaller than the minimum, in pixels.
_TEXT_SHARE, _MIN_TEXT_PX = 0.035, 11
_MAX_CAPTION_SHARE = 0.5
_WHITE, _GRAY = (255, 255, 255), (176, 176, 176)
_BOX_ALPHA = 0.75  # letters have a contrast of at least 4.5:1, also over a white frame
_WEIGHT = 400
_MAX_ERROR_LETTERS = 120
_ELLIPSIS = "…"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a caption.

    Attributes:
        name: A name, which is shortened where the frame is narrow.
        value: What follows it, and is left whole.
    """

    name: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.name}  {self.value}" if self.value else self.name


def write_caption(image: Pixels, result: FrameResult) -> None:
    """Writes the caption of a result on a dark box in the lower left corner, in place.

    Lines that are too wide are shortened, and those for which there is no room left out, the last
    ones first. The letters of a reused answer are dimmer.

    Args:
        image: uint8 RGB (height, width, 3).
        result: The result.
    """
    height, width = image.shape[:2]
    size = max(_MIN_TEXT_PX, round(_TEXT_SHARE * min(height, width)))
    line_height, margin = round(1.5 * size), round(0.5 * size)
    lines = caption_of(result)
    # On a small frame the caption must leave the heat visible.
    count = min(len(lines), int(_MAX_CAPTION_SHARE * height / line_height))
    texts = [_fitted(line, size, width - 4 * margin) for line in lines[:count]]
    if not any(texts):
        return
    box_width = min(width, max(_width_of(text, size) for text in texts) + 2 * margin)
    box_height = len(texts) * line_height + margin
    box = image[height - box_height :, :box_width]
    box[:] = cv2.convertScaleAbs(box, alpha=1 - _BOX_ALPHA)
    color = _GRAY if result.status is Status.REUSED else _WHITE
    for number, text in enumerate(texts):
        baseline = height - box_height + (number + 1) * line_height - margin // 2
        cv2.putText(image, text, (margin, baseline), color, _font(), size, _WEIGHT)


def caption_of(result: FrameResult) -> Sequence[Line]:
    """Returns the lines of the caption.

    They are the class and its probability, the best class if that is another one, and source and
    time. The last line of a reused answer ends in "reused"; the first one of a failed frame says
    why.
    """
    if result.status is Status.FAILED:
        error = " ".join(result.error.split())
        if len(error) > _MAX_ERROR_LETTERS:
            error = error[: _MAX_ERROR_LETTERS - 1] + _ELLIPSIS
        return [Line(f"failed: {error}"), _origin(result)]
    probability = probability_of(result)
    target = Line(result.target, "" if probability is None else f"{probability:.1%}")
    return [target, *_better(result), _origin(result)]


def _better(result: FrameResult) -> Sequence[Line]:
    """Returns the best class if it is not the one whose heat is drawn, but given or held."""
    explanation = explanation_of(result)
    if result.explanation is None or explanation is None or not result.explanation.predictions:
        return []
    best = result.explanation.predictions[0]
    if best.index == explanation.index:
        return []
    return [Line(f"best: {best.index} {best.name}".rstrip(), f"{best.probability:.1%}")]


def _origin(result: FrameResult) -> Line:
    frame = result.frame
    name = frame.source if frame.path is None else f"{frame.source}  {frame.path.name}"
    values = [] if frame.path else [time_of(frame.time_s, is_live=frame.is_live)]
    if result.status is Status.REUSED:
        values.append("reused")
    return Line(name, "  ".join(values))


def time_of(time_s: float, *, is_live: bool) -> str:
    """Returns a frame's time: UTC of a live frame, else minutes and seconds of the video."""
    if is_live:
        return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(time_s))
    minutes, seconds = divmod(time_s, 60)
    hours, minutes = divmod(int(minutes), 60)
    seconds = math.floor(seconds * 10) / 10  # 59.97 s is not 60.0 s
    return f"{hours}:{minutes:02d}:{seconds:04.1f}" if hours else f"{minutes}:{seconds:04.1f}"


def _fitted(line: Line, size: int, width: int) -> str:
    """Returns a line in at most ``width`` pixels: with as much of its name as there is room for."""
    text = str(line)
    if _width_of(text, size) <= width:
        return text
    end = f"{_ELLIPSIS}  {line.value}" if line.value else _ELLIPSIS
    count = _count_that_fits(line.name, end, size, width)
    if count == 0:  # there is room for neither
        text, end = text.strip(), _ELLIPSIS
        count = _count_that_fits(text, end, size, width)
        return text[:count] + end if count else ""
    return line.name[:count].rstrip() + end


def _count_that_fits(text: str, end: str, size: int, width: int) -> int:
    """Returns how many letters of a text have room in front of its new end."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if _width_of(text[:middle] + end, size) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _width_of(text: str, size: int) -> int:
    x, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), _font(), size, _WEIGHT)
    return int(x + width)


@cache
def _font() -> Any:
    return cv2.FontFace("sans")
