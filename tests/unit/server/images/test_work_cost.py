"""Estimates of the cost of decoding and rendering."""

import cv2
import numpy as np
import pytest

from gradcam_server.domain.requests import HeatmapForm, HeatmapFormat, RawImage
from gradcam_server.images.work_cost import decoding_s, rendering_s
from gradcam_server.pipeline.fair_slots import MAX_SHORT_S


def encoded(extension: str, height: int, width: int) -> bytes:
    """Returns a grey image, which takes few bytes at any size."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    return cv2.imencode(extension, pixels)[1].tobytes()


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_small_images_are_short_work_and_large_ones_are_not(extension: str) -> None:
    """The estimate follows the pixels, also for a file of few bytes."""
    assert decoding_s(encoded(extension, 480, 640)) <= MAX_SHORT_S
    assert decoding_s(encoded(extension, 3000, 4000)) > MAX_SHORT_S


@pytest.mark.parametrize("count", [4000, 500_000, 7_500_000])
def test_a_file_of_segments_is_long_work(count: int) -> None:
    """A small image behind many segments, or in many bytes, counts as long work."""
    jpeg = encoded(".jpg", 16, 16)
    assert decoding_s(jpeg[:2] + b"\xff\xfe\x00\x02" * count + jpeg[2:]) > MAX_SHORT_S


@pytest.mark.parametrize(
    "segment", [b"\xff\xfe\x00\x02", b"\xff\xe5\x00\x02", b"\xff\xdd\x00\x04\0\0"]
)
def test_segments_after_the_size_are_not_read(segment: bytes) -> None:
    """The estimate needs the size alone, so it stops reading there."""
    jpeg = encoded(".jpg", 16, 16)
    scan = jpeg.index(b"\xff\xda")
    assert decoding_s(jpeg[:scan] + segment * 300 + jpeg[scan:]) <= MAX_SHORT_S


def test_a_long_tail_is_long_work() -> None:
    """Bytes appended to a small image count too."""
    assert decoding_s(encoded(".jpg", 16, 16) + bytes(4_000_000)) > MAX_SHORT_S


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM"])
def test_what_does_not_say_its_size_is_long_work(data: bytes) -> None:
    """A broken file has an estimate; decoding raises the error."""
    assert decoding_s(data) > MAX_SHORT_S


def test_raw_pixels_count_as_they_are() -> None:
    """Raw pixels are estimated by the size in the request, true or not."""
    assert decoding_s(RawImage(b"", 300, 400)) <= MAX_SHORT_S
    assert decoding_s(RawImage(b"", 3000, 4000)) > MAX_SHORT_S


def test_rendering_costs_by_the_bytes_of_all_maps() -> None:
    """Maps at the layer's resolution are short work; five large overlays are long work."""
    raw, overlay = HeatmapForm(), HeatmapForm(HeatmapFormat.OVERLAY_PNG)
    assert rendering_s(50_000_000, [raw], 5) <= MAX_SHORT_S
    assert rendering_s(300 * 400, [overlay], 1) <= MAX_SHORT_S
    assert rendering_s(1500 * 2000, [overlay], 5) > MAX_SHORT_S
