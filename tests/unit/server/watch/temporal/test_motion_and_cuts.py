"""Motion between frames, and cuts."""

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import cv2
import numpy as np
import pytest

from gradcam_client.extents import Extent
from gradcam_server.watch.frames import Pixels
from gradcam_server.watch.temporal.cuts import is_cut
from gradcam_server.watch.temporal.motion import Motion, MotionEstimator, small_gray
from support.stream_frames import texture

PHOTOGRAPHS = ("cat", "espresso", "astronaut")


def photograph(images: Path, name: str) -> Pixels:
    found: Pixels = cv2.cvtColor(cv2.imread(str(images / f"{name}.jpg")), cv2.COLOR_BGR2RGB)
    return cv2.resize(found, (256, 192), interpolation=cv2.INTER_AREA)


def motion(before: Pixels, now: Pixels) -> Motion:
    estimator = MotionEstimator()
    assert estimator.update(small_gray(before)) is None
    found = estimator.update(small_gray(now))
    assert found is not None
    return found


def moved(image: Pixels, *, right: float = 0, zoom: float = 1, down: float = 0) -> Pixels:
    height, width = image.shape[:2]
    matrix = np.array(
        [
            [zoom, 0, width / 2 * (1 - zoom) + right],
            [0, zoom, height / 2 * (1 - zoom) + down],
        ]
    )
    found: Pixels = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return found


def noisy(image: Pixels, sigma: float, seed: int) -> Pixels:
    values = image + np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def exposed(image: Pixels, gain: float) -> Pixels:
    return np.clip(image * gain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("gain", [1.0, 0.6, 1.3])
def test_flow_is_the_known_motion(gain: float) -> None:
    """A pan gives its own vector at nearly all pixels, whatever the exposure."""
    image = texture(1)
    found = motion(image, exposed(moved(image, right=12, down=-6), gain))
    inside = found.flow[16:-16, 16:-16]
    assert np.median(np.abs(inside - [-6, 3])) < 0.2


def test_what_comes_into_view_was_not_visible() -> None:
    """The strip that a pan uncovers has no place in the earlier frame; the rest has."""
    scene = texture(2, 192, 300)
    seen = motion(scene[:, 16:272], scene[:, :256]).was_visible
    assert seen[20:-20, :5].mean() < 0.3
    assert seen[20:-20, 12:-3].mean() > 0.95


def test_a_map_is_carried_along() -> None:
    """A spot of a map moves as the scene does."""
    image = texture(3)
    spot = np.zeros((96, 128), np.float32)
    spot[40:44, 60:64] = 1
    carried = motion(image, moved(image, right=20, down=10)).carry(spot)
    y, x = np.unravel_index(int(cv2.blur(carried, (5, 5)).argmax()), carried.shape)
    assert abs(x - 71.5) <= 1.5
    assert abs(y - 46.5) <= 1.5


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(
    "change",
    [
        lambda image: moved(image, right=20),
        lambda image: moved(image, right=-14, down=10),
        lambda image: moved(image, zoom=1.2),
        lambda image: moved(image, zoom=0.85),
        lambda image: noisy(image, 40, 9),
        lambda image: exposed(image, 0.35),
        lambda image: exposed(image, 1.4),
        lambda image: noisy(exposed(moved(image, right=10), 1.2), 15, 9),
        lambda image: cv2.addWeighted(image, 0.9, image[:, ::-1], 0.1, 0),
    ],
    ids=["pan", "pan aslant", "zoom in", "zoom out", "noise", "dark", "bright", "all", "fade"],
)
def test_motion_noise_and_exposure_are_no_cuts(
    images: Path, name: str, change: Callable[[Pixels], Pixels]
) -> None:
    """What happens within a scene does not start the map afresh."""
    image = photograph(images, name)
    assert not is_cut(motion(noisy(image, 3, 1), change(image)))


@pytest.mark.parametrize(("name", "other"), permutations(PHOTOGRAPHS, 2))
@pytest.mark.parametrize("zoom", [1, 1.6, 2.5])
def test_cuts_are_found(images: Path, name: str, other: str, zoom: float) -> None:
    """Another scene is a cut, wherever the cameras look."""
    first, second = photograph(images, name), photograph(images, other)
    for before_zoom, right in product((1, 1.6), (-60, -30, 0, 30, 60)):
        before = noisy(moved(first, zoom=before_zoom), 5, 1)
        assert is_cut(motion(before, moved(second, zoom=zoom, right=right)))


@pytest.mark.parametrize(("name", "other"), permutations(PHOTOGRAPHS, 2))
def test_cuts_without_a_change_of_exposure_are_found(images: Path, name: str, other: str) -> None:
    """A scene of the same brightness and contrast is a cut, too; so are flat frames."""
    before, now = noisy(photograph(images, name), 5, 1), photograph(images, other)
    alike = (now - now.mean()) / now.std() * before.std() + before.mean()
    assert is_cut(motion(before, np.clip(alike, 0, 255).astype(np.uint8)))
    assert is_cut(motion(np.zeros_like(now), now))
    assert is_cut(motion(before, np.full_like(before, 200)))


def test_flat_frames_are_one_scene() -> None:
    """A dark camera with noise cuts nowhere."""
    dark = np.full((192, 256, 3), 12, np.uint8)
    assert not is_cut(motion(noisy(dark, 4, 1), noisy(dark, 4, 2)))


@pytest.mark.parametrize(
    ("extent", "corner"),
    [
        (Extent(10, 20, 60, 80), (10, 20)),
        (Extent(-30, 0, 160, 160), (0, 0)),
        (Extent(0, 0, 100, 160), (0, 0)),
    ],
)
def test_the_small_picture_covers_the_extent(extent: Extent, corner: tuple[int, int]) -> None:
    """Flow and map cover the same part of the frame, also where it reaches beyond."""
    image = np.zeros((100, 160, 3), np.uint8)
    image[corner[0] : corner[0] + 20, corner[1] : corner[1] + 20] = 255
    gray = small_gray(image, extent)
    assert max(gray.shape) == 128
    scale = 128 / max(extent.height, extent.width)
    y = round((corner[0] + 10 - extent.top) * scale)
    x = round((corner[1] + 10 - extent.left) * scale)
    assert gray[y, x] == 255
    assert gray.mean() < 128


@pytest.mark.parametrize("shape", [(1, 1, 3), (20, 2000, 3), (3000, 8, 3)])
def test_flow_of_any_shape(shape: tuple[int, int, int]) -> None:
    """Very small and very long frames have a motion, too."""
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.isfinite(motion(image, image).flow).all()


def test_a_new_size_starts_afresh() -> None:
    """A camera that comes back with another shape has no motion from its last frame."""
    estimator = MotionEstimator()
    estimator.update(small_gray(texture(0)))
    assert estimator.update(small_gray(texture(0, 200, 200))) is None
