"""Results of frames, as the outputs of ``gradcam watch`` get them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradcam_client.extents import Extent
from gradcam_client.results import (
    Explanation,
    Heatmap,
    ImageExplanation,
    Prediction,
    ServingStats,
)
from gradcam_server.watch.frames import Frame, FrameResult, Pixels, Status

CAT, DOG = (281, "tabby"), (207, "golden retriever")
RAW = np.array([[0, 1, 2], [3, 4, 8]], np.float32)


def gray(level: int, size: tuple[int, int] = (120, 160)) -> Pixels:
    """Returns a uniform picture: uint8 (height, width, 3)."""
    return np.full((*size, 3), level, np.uint8)


def noise(size: tuple[int, int] = (120, 160), seed: int = 0) -> Pixels:
    """Returns a picture of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def explanation(
    target: tuple[int, str] = CAT, extent: Extent | None = None, raw: np.ndarray = RAW
) -> Explanation:
    """Makes the explanation of a class."""
    heatmap = Heatmap("raw", len(raw), raw.shape[1], "none", "none", raw.astype("<f4").tobytes())
    return Explanation(
        *target, 7.25, "top_conv", "gradcam", -1.0, 8.0, False, (heatmap,), image_extent=extent
    )


def answer(
    size: tuple[int, int] = (120, 160), explanations: Sequence[Explanation] = ()
) -> ImageExplanation:
    """Makes an answer about an image of a size (height, width)."""
    whole = Extent(0, 0, *size)
    return ImageExplanation(
        "lite0",
        *size,
        (Prediction(*CAT, 0.875, 7.25), Prediction(*DOG, 0.0625, 3.5)),
        tuple(explanations) or (explanation(extent=whole),),
        None,
        ServingStats(1, 2, 3, 4, 5, 6),
        "3",
    )


def frame(image: Pixels | None = None, number: int = 0, **changes: Any) -> Frame:
    """Makes a frame of the file "clip", 25 of them in a second."""
    values: dict[str, Any] = {
        "source": "clip",
        "number": number,
        "time_s": number / 25,
        "read_at": 100.0,
        "image": gray(90) if image is None else image,
        "is_live": False,
    }
    return Frame(**(values | changes))


def explained(shown: Frame | None = None, **changes: Any) -> FrameResult:
    """Makes the result of a frame that was explained."""
    shown = shown or frame()
    values: dict[str, Any] = {
        "frame": shown,
        "status": Status.EXPLAINED,
        "explanation": answer(shown.image.shape[:2]),
        "target": "281 tabby",
        "heat": (RAW / 8).astype(np.float32),
        "error": "",
        "lag_s": 0.0125,
    }
    return FrameResult(**(values | changes))


def failed(shown: Frame | None = None, error: str = "the server drains") -> FrameResult:
    """Makes the result of a frame that failed."""
    return FrameResult(shown or frame(), Status.FAILED, None, "", None, error, 0.5)


def file_frame(path: Path, number: int = 0) -> Frame:
    """Makes the frame of a file in a folder."""
    return frame(number=number, source="inbox", path=path, encoded=b"jpeg", time_s=1.7e9)
