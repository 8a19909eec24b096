"""Frames and answers of streams, made up for tests."""

import numpy as np
from numpy.typing import NDArray

from gradcam_client import ImageExplanation
from gradcam_client.extents import Extent
from gradcam_client.results import Explanation, Heatmap, Prediction, ServingStats
from gradcam_server.watch.frames import Frame, Pixels

RATE = 10.0


def frame(number: int, image: Pixels) -> Frame:
    """A frame of a video file with ten frames a second."""
    time_s = number / RATE
    return Frame("clip", number, time_s, time_s, image, is_live=False)


def answer(
    best: int, heat: NDArray[np.float32] | None = None, *, target: int | None = None
) -> ImageExplanation:
    """An answer with a best class and the map of a class, which is the best one by default."""
    heat = np.eye(4, dtype=np.float32) if heat is None else heat.astype(np.float32)
    height, width = heat.shape
    raw = Heatmap("raw", height, width, "none", "none", heat.astype("<f4").tobytes())
    index = best if target is None else target
    explanation = Explanation(
        index,
        f"class {index}",
        1.0,
        "layer",
        "gradcam",
        raw_min=float(heat.min()),
        raw_max=float(heat.max()),
        degenerate=False,
        heatmaps=(raw,),
        image_extent=Extent(0, 0, 96, 128),
    )
    return ImageExplanation(
        model="model",
        image_height=96,
        image_width=128,
        predictions=(Prediction(best, f"class {best}", 0.9, 1.0),),
        explanations=(explanation,),
        logits=None,
        stats=ServingStats(0, 0, 0, 0, 1, 1),
    )


def texture(seed: int, height: int = 192, width: int = 256) -> Pixels:
    """A picture with detail of all sizes, as photographs have."""
    random = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    spectrum = np.fft.rfft2(random.normal(size=(height, width)))
    spectrum /= np.maximum(np.hypot(rows, columns), 1 / width) ** 1.3
    values = np.fft.irfft2(spectrum, (height, width))
    values = 128 + 45 * (values - values.mean()) / values.std()
    gray = np.clip(values, 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)
