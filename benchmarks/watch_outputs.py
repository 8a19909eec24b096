"""Measures how many frames a second ``gradcam watch`` draws and writes as a video.

The frames are of a photograph over which a camera pans, with a camera's noise; the heat is a map
of the size that smoothing gives. In each round drawing alone, encoding alone and the
whole output take turns.

Usage: python benchmarks/watch_outputs.py [--size WIDTHxHEIGHT] [--frames N] [--rounds N]
    [--output FILE]
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gradcam_client.extents import Extent
from gradcam_client.results import Explanation, ImageExplanation, Prediction, ServingStats
from gradcam_server.watch.frames import Frame, FrameResult, Pixels, Status
from gradcam_server.watch.outputs.draw import Painter
from gradcam_server.watch.outputs.video import VideoFile, VideoOutput
from gradcam_server.watch.temporal.motion import small_gray

IMAGE = Path(__file__).resolve().parent.parent / "examples" / "images" / "cat.jpg"
CAMERA_NOISE = 2.0
RATE = 25


def film(width: int, height: int, count: int) -> list[Pixels]:
    """Pans over the photograph by some pixels a frame."""
    photograph = cv2.imread(str(IMAGE))
    assert photograph is not None
    wide = cv2.resize(photograph[..., ::-1], (width + 4 * count, height + 2 * count))
    random = np.random.default_rng(0)
    noise = random.normal(0, CAMERA_NOISE, (height + 16, width + 16, 1)).astype(np.float32)
    frames = []
    for number in range(count):
        seen = wide[2 * number : 2 * number + height, 4 * number : 4 * number + width]
        top, left = random.integers(0, 16, 2)
        noisy = seen + noise[top : top + height, left : left + width]
        frames.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return frames


def results_of(images: Sequence[Pixels]) -> list[FrameResult]:
    """Returns a result for each frame, whose heat moves."""
    height, width = images[0].shape[:2]
    rows, columns = np.indices(small_gray(images[0]).shape, np.float32)
    whole = Extent(0, 0, height, width)
    explained = Explanation(
        285, "Egyptian cat", 7.0, "top_conv", "gradcam", 0, 1, False, (), image_extent=whole
    )
    answer = ImageExplanation(
        "efficientnet-lite0",
        *(height, width),
        (Prediction(285, "Egyptian cat", 0.9, 7.0),),
        (explained,),
        None,
        ServingStats(0, 0, 0, 0, 1, 1),
    )
    results = []
    for number, image in enumerate(images):
        distance = (rows - 36) ** 2 + (columns - 40 - number / 2) ** 2
        heat = np.exp(-distance / 500).astype(np.float32)
        frame = Frame("clip", number, number / RATE, 0.0, image, is_live=False)
        results.append(
            FrameResult(frame, Status.EXPLAINED, answer, "285 Egyptian cat", heat, "", 0.0)
        )
    return results


def rate(results: Sequence[FrameResult], step: Callable[[FrameResult], Any]) -> float:
    """Returns the frames a second of a step."""
    began_at = time.perf_counter()
    for result in results:
        step(result)
    return len(results) / (time.perf_counter() - began_at)


def write(results: Sequence[FrameResult], path: Path) -> float:
    """Returns the frames a second of the video output, its end included."""
    output = VideoOutput(path, ["clip"])
    began_at = time.perf_counter()
    for result in results:
        output.write(result)
    output.close()
    return len(results) / (time.perf_counter() - began_at)


def encode(results: Sequence[FrameResult], path: Path) -> float:
    """Returns the frames a second of the encoder alone, with the conversion of colours."""
    file = VideoFile(path, results[0].frame)
    frames_per_s = rate(results, lambda one: file.add(one.frame.image, one.frame.time_s))
    file.close()
    return frames_per_s


def quartiles(values: Sequence[float]) -> list[float]:
    """Returns the quartiles, rounded."""
    return [round(float(one), 1) for one in np.percentile(values, (25, 50, 75))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--frames", type=int, default=50, help="of each round (default 50)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    results = results_of(film(width, height, arguments.frames))
    painter = Painter()
    rates: dict[str, list[float]] = {"drawn": [], "encoded": [], "written": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for _ in range(arguments.rounds):
            rates["drawn"].append(rate(results, painter.draw))
            rates["encoded"].append(encode(results, path))
            rates["written"].append(write(results, path))
        bytes_per_frame = path.stat().st_size / len(results)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "size": arguments.size,
        "frames": arguments.frames,
        "rounds": arguments.rounds,
        "frames_per_second_quartiles": {name: quartiles(one) for name, one in rates.items()},
        "bytes_per_frame": round(bytes_per_frame),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
