"""Bytes to pixels, against Pillow as the oracle."""

import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradcam_server.domain.requests import RawImage
from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.decode import decode_image, decode_reduced, view_raw

LIMIT = 10_000_000


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_declaring(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def photo(cat_jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(cat_jpeg)).convert("RGB")


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 80}, 1),
        ("JPEG", {"quality": 80}, 1),
        ("JPEG", {"quality": 80, "progressive": True}, 1),
    ],
)
def test_every_format_decodes_to_rgb(
    photo: Image.Image, format: str, options: dict[str, object], tolerance: int
) -> None:
    """Each accepted format gives the pixels that Pillow reads, in RGB order."""
    data = encoded(photo, format, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    actual = decode_image(data, LIMIT)
    assert actual.dtype == np.uint8
    assert np.abs(actual.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photo: Image.Image, format: str, orientation: int) -> None:
    """The EXIF orientation is applied."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(photo, format, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    actual = decode_image(data, LIMIT)
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).mean() < 1


@pytest.mark.parametrize(
    ("shrinkage", "size"),
    [(1, (480, 641)), (3.9, (480, 641)), (4, (240, 321)), (8, (120, 161)), (99, (60, 81))],
)
def test_a_jpeg_is_reduced_as_far_as_leaves_twice_what_is_needed(
    photo: Image.Image, shrinkage: float, size: tuple[int, int]
) -> None:
    """A JPEG is reduced by 2, 4 or 8; it is the same picture, with the original's size."""
    large = photo.resize((641, 480))
    image, original = decode_reduced(encoded(large, "JPEG", quality=95), LIMIT, lambda _: shrinkage)
    assert (image.shape[:2], original) == (size, (480, 641))
    expected = np.asarray(large.resize(size[::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(image - expected).mean() < 6  # of 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(400, 300), (400, 400), (400, 397)])
def test_a_reduced_jpeg_is_upright(
    photo: Image.Image, orientation: int, size: tuple[int, int]
) -> None:
    """Image and size are those of the upright original, also if it is nearly square."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo.resize(size), "JPEG", exif=exif, quality=95)
    image, original = decode_reduced(data, LIMIT, lambda _: 16)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert original == upright.size[::-1]
    assert image.shape[0] < 0.6 * upright.height
    expected = np.asarray(upright.resize(image.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(image - expected).mean() < 4


def test_the_axis_with_fewer_pixels_decides_before_and_after_turning(photo: Image.Image) -> None:
    """EXIF may turn the image, so the reduced image must be large enough both ways."""
    data = encoded(photo.resize((800, 400)), "JPEG")
    wide_only = {(400, 800): 16.0, (800, 400): 4.0}
    assert decode_reduced(data, LIMIT, wide_only.__getitem__)[0].shape == (200, 400, 3)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP"])
def test_only_jpegs_are_reduced(photo: Image.Image, format: str) -> None:
    """Only JPEGs are reduced: OpenCV would scale other formats with another filter."""
    data = encoded(photo, format)
    image, size = decode_reduced(data, LIMIT, lambda _: 99)
    assert size == image.shape[:2] == (photo.height, photo.width)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_truncated_jpegs_are_refused_at_any_scale(photo: Image.Image, share: float) -> None:
    """A truncated JPEG is refused at a reduced size too."""
    data = encoded(photo, "JPEG")
    with pytest.raises(InvalidRequestError, match="451 x 300 pixels but is truncated"):
        decode_reduced(data[: int(len(data) * share)], LIMIT, lambda _: 99)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_pixel_formats_become_rgb(photo: Image.Image, mode: str) -> None:
    """Grey, palette and transparent images are decoded; alpha is dropped."""
    image = photo.convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), LIMIT), expected)


def test_alpha_is_dropped_not_blended() -> None:
    """The colours stored under transparent pixels are used."""
    pixels = np.full((4, 5, 4), (10, 200, 30, 0), np.uint8)
    decoded = decode_image(encoded(Image.fromarray(pixels), "PNG"), LIMIT)
    np.testing.assert_array_equal(decoded, pixels[..., :3])


def test_sixteen_bit_samples_keep_their_high_byte() -> None:
    """A 16-bit PNG is neither clipped nor darkened."""
    samples = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    data = cv2.imencode(".png", samples)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data, LIMIT)[..., 0], samples >> 8)


def test_one_pixel_is_an_image() -> None:
    """The smallest image decodes."""
    data = encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")
    assert decode_image(data, LIMIT).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"just some text, not an image", "not a JPEG, PNG, WebP or BMP"),
        (b"GIF89a" + bytes(100), "not a JPEG, PNG, WebP or BMP"),
        (b"\xff\xd8\xff", "not a JPEG|corrupt"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, message: str) -> None:
    """The error names the bytes that were sent and the accepted formats."""
    with pytest.raises(InvalidRequestError, match=message) as caught:
        decode_image(data, LIMIT)
    assert caught.value.field == "encoded_image"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_images_are_refused(photo: Image.Image, format: str, share: float) -> None:
    """Half an image is an error, never a picture padded with grey."""
    data = encoded(photo, format)
    with pytest.raises(InvalidRequestError, match="truncated|corrupt|not a"):
        decode_image(data[: int(len(data) * share)], LIMIT)


def test_declared_size_is_refused_before_memory_is_taken() -> None:
    """A PNG of 1 KB that declares 60,000 x 60,000 pixels takes no 10 GB."""
    data = png_declaring(60_000, 60_000)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match="60000 x 60000.*limit of 50000000"):
            decode_image(data, 50_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8))
def test_corrupt_files_never_raise_anything_else(flips: list[tuple[int, int]]) -> None:
    """Any bytes give an image or InvalidRequestError."""
    data = bytearray(encoded(Image.radial_gradient("L").resize((40, 30)), "PNG"))
    for position, value in flips:
        data[position % len(data)] = value
    try:
        image = decode_image(bytes(data), LIMIT)
    except InvalidRequestError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3


def test_raw_pixels_are_viewed_in_their_order() -> None:
    """Raw bytes are RGB rows from the top."""
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(view_raw(RawImage(pixels.tobytes(), 2, 3), LIMIT), pixels)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (RawImage(bytes(11), 2, 2), "11 bytes do not match height 2 x width 2 x 3.*= 12"),
        (RawImage(b"", 0, 5), "not positive"),
        (RawImage(b"", -1, -5), "not positive"),
        (RawImage(b"", 60_000, 60_000), "limit"),
    ],
)
def test_raw_pixels_must_match_their_size(raw: RawImage, message: str) -> None:
    """The error names the number of bytes, and the number that fits the size."""
    with pytest.raises(InvalidRequestError, match=message):
        view_raw(raw, LIMIT)
