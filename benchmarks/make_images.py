"""Makes many JPEGs from a few photographs: random crops, mirror images and qualities.

Usage: python benchmarks/make_images.py OUTPUT [--count N] [--source FOLDER] [--seed S]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "images"
MIN_PART = 0.4
SIDES = (256, 640)
QUALITIES = (60, 95)
PER_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--source", type=Path, default=PHOTOS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_images(options.output, options.count, options.source, options.seed)


def make_images(output: Path, count: int, source: Path = PHOTOS, seed: int = 0) -> list[Path]:
    """Writes JPEGs into folders of a thousand; the same files for the same seed.

    Args:
        output: The folder.
        count: The number of files.
        source: A folder of photographs.
        seed: Seed of the random generator.
    """
    photos = [
        np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR), np.uint8)
        for path in sorted(source.iterdir())
        if path.suffix in (".jpg", ".jpeg", ".png")
    ]
    if not photos:
        raise SystemExit(f"{source}: it holds no photographs")
    generator = np.random.default_rng(seed)
    paths = []
    for number in track(range(count), "Making images", disable=count < PER_FOLDER):
        path = output / f"{number // PER_FOLDER:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = vary(photos[number % len(photos)], generator)
        quality = int(generator.integers(*QUALITIES))
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        paths.append(path)
    return paths


def vary(photo: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Returns a random part of a photograph, mirrored or not, resized; uint8 BGR."""
    height, width, _ = photo.shape
    part = generator.uniform(MIN_PART, 1)
    rows, columns = int(height * part), int(width * part)
    top = int(generator.integers(0, height - rows + 1))
    left = int(generator.integers(0, width - columns + 1))
    image = photo[top : top + rows, left : left + columns]
    if generator.random() < 0.5:
        image = image[:, ::-1]
    side = int(generator.integers(*SIDES))
    scale = side / max(rows, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


if __name__ == "__main__":
    main()
