"""Images to calibrate and compare with: the user's, or crops of the bundled photographs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.requests import ResizeMode
from gradcam_server.errors import InvalidRequestError, StartupError
from gradcam_server.images.decode import decode_image
from gradcam_server.images.file_names import reason_to_leave_out
from gradcam_server.images.geometry import fit

BUNDLED = Path(__file__).parents[1] / "data" / "images"

_MIN_FILES = 60  # Fewer images are cropped.
_CALIBRATION, _COMPARISON = 128, 64
_MAX_PIXELS = 100_000_000
_MIN_SIDE = 0.4  # Of a crop, as a share of the image's side.


@dataclass(frozen=True)
class Samples:
    """uint8 RGB images of the model's input size, shape (N, H, W, 3).

    Attributes:
        calibration: Images that choose the ranges of the integers.
        comparison: Other images, to compare the answers.
        origin: The origin of the images, in words.
    """

    calibration: NDArray[np.uint8]
    comparison: NDArray[np.uint8]
    origin: str


def load_samples(folder: Path | None, input_size: tuple[int, int]) -> Samples:
    """Reads the images of a folder: two of three calibrate, the third is compared.

    Fewer than 60 images are cropped and mirrored at random (seeded), to 128 crops that calibrate
    and 64 that are compared.

    Args:
        folder: The user's images, also in subfolders; None for the bundled photographs.
        input_size: (height, width) of the model's input in pixels.

    Raises:
        StartupError: There are no images, or one cannot be read.
    """
    images = list(_read(folder or BUNDLED))
    if not images:
        raise StartupError(f"there are no images in {folder}: JPEG, PNG, WebP or BMP are needed")
    origin = f"{len(images)} {'images of the user' if folder else 'bundled photographs'}"
    if len(images) < _MIN_FILES:
        random = np.random.default_rng(0)
        calibration = _crops(images, _CALIBRATION, random)
        comparison = _crops(images, _COMPARISON, random)
        origin += ", cropped and mirrored"
    else:
        calibration = [image for index, image in enumerate(images) if index % 3 < 2]
        comparison = images[2::3]
    return Samples(_fitted(calibration, input_size), _fitted(comparison, input_size), origin)


def _read(folder: Path) -> Iterator[NDArray[np.uint8]]:
    for path in sorted(folder.rglob("*")):
        if reason_to_leave_out(path.relative_to(folder).as_posix()) is None:
            try:
                yield decode_image(path.read_bytes(), _MAX_PIXELS)
            except (OSError, InvalidRequestError) as error:
                raise StartupError(f"cannot read {path}: {error}") from error


def _crops(
    images: Sequence[NDArray[np.uint8]], count: int, random: np.random.Generator
) -> list[NDArray[np.uint8]]:
    crops = []
    for number in range(count):
        image = images[number % len(images)]
        share = random.uniform(_MIN_SIDE, 1, 2)
        height, width = (max(1, round(side)) for side in share * image.shape[:2])
        top = random.integers(0, image.shape[0] - height + 1)
        left = random.integers(0, image.shape[1] - width + 1)
        crop = image[top : top + height, left : left + width]
        crops.append(cv2.flip(crop, 1) if random.integers(2) else crop)
    return [np.asarray(crop, np.uint8) for crop in crops]


def _fitted(images: Sequence[NDArray[np.uint8]], input_size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.stack([fit(image, input_size, ResizeMode.STRETCH)[0] for image in images])
