"""From decoded frames to pixels."""

import gc

import av
import numpy as np
import psutil
import pytest

from gradcam_server.watch.sources.pixels import PixelConverter

FORMATS = ["yuv420p", "yuvj422p", "rgb24", "nv12"]


def decoded(level: int, size: tuple[int, int], pixel_format: str) -> av.VideoFrame:
    """A frame of one gray level, as a decoder gives it."""
    image = np.full((*size, 3), level, np.uint8)
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format=pixel_format, threads=1
    )


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_conversion_starts_no_threads(pixel_format: str) -> None:
    """A camera has many frames: threads for each of them, until it is freed, are hundreds."""
    frames = [decoded(100, (96, 128), pixel_format) for _ in range(20)]
    converter = PixelConverter()
    before = psutil.Process().num_threads()
    for frame in frames:
        converter.upright(frame)
    assert psutil.Process().num_threads() <= before


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_a_converted_frame_is_freed_at_once(pixel_format: str) -> None:
    """Frames of full HD have megabytes, and the garbage collector counts objects, not bytes."""
    converter = PixelConverter()
    converter.upright(decoded(0, (96, 128), pixel_format))
    gc.collect()
    gc.disable()
    try:
        before = frames_alive()
        for level in range(20):
            converter.upright(decoded(level, (96, 128), pixel_format))
        assert frames_alive() == before
    finally:
        gc.enable()


def frames_alive() -> int:
    return sum(type(one) is av.VideoFrame for one in gc.get_objects())


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_any_frame_may_follow_any_other(pixel_format: str) -> None:
    """The converter keeps nothing of a frame of another size or format."""
    converter = PixelConverter()
    for level, size in ((200, (96, 128)), (40, (48, 64)), (120, (96, 128)), (80, (64, 32))):
        for one in ("yuv420p", pixel_format):
            image = converter.upright(decoded(level, size, one))
            assert image.shape == (*size, 3)
            assert np.abs(image.astype(int) - level).max() <= 2


def test_the_pixels_outlive_their_frame() -> None:
    """They are a copy: a decoder uses the memory of its frames again."""
    frame = decoded(90, (48, 64), "rgb24")
    image = PixelConverter().upright(frame)
    del frame
    gc.collect()
    np.testing.assert_array_equal(image, 90)
