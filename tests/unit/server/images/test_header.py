"""Sizes from headers, against OpenCV; files with too many segments or chunks."""

import random

import cv2
import numpy as np
import pytest

from fuzz.mutations import image_files, mutate_image
from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.decode import decode_image
from gradcam_server.images.header import read_header
from support.image_variants import SIZE, encoded, png_chunk, variants, with_chunk, with_segment

LIMIT = 10_000_000
MIB = 2**20


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in variants()])
def test_metadata_are_passed_over_as_opencv_does(data: bytes) -> None:
    """Files that OpenCV decodes are accepted, with any metadata, and the size is the header's."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    assert read_header(data).size == decoded.shape[:2] == SIZE
    np.testing.assert_array_equal(decode_image(data, LIMIT), decoded)


def test_opencv_never_decodes_more_than_the_header_says() -> None:
    """No broken file decodes to more pixels than its header declares."""
    rng = random.Random(0)
    files, decoded_count = image_files(), 0
    for _ in range(3000):
        data = mutate_image(rng.choice(files), rng)
        try:
            height, width = read_header(data).size
        except InvalidRequestError:
            continue
        if height * width > 100_000:
            continue
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if decoded is not None:
            decoded_count += 1
            assert decoded.shape[:2] in ((height, width), (width, height)), data
    assert decoded_count > 300


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff\xd8" + b"\xff\xfe\0\2" * (31 * MIB // 4), id="jpeg comments"),
        pytest.param(
            with_segment(encoded("JPEG"), 0xFE, b"")[:-2] + b"\xff\xe5\0\2" * 100_000,
            id="jpeg segments among the pixels",
        ),
        pytest.param(
            with_chunk(encoded("PNG"), png_chunk(b"tEXt", b"") * (31 * MIB // 12)), id="png text"
        ),
        pytest.param(
            encoded("PNG")[:-12] + png_chunk(b"IDAT", b"") * (31 * MIB // 12), id="png pixels"
        ),
    ],
)
def test_endless_segments_are_refused_at_once(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before OpenCV is called, after a few thousand of the millions of steps."""

    def imdecode(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(cv2, "imdecode", imdecode)
    with pytest.raises(InvalidRequestError, match="more than [0-9]+ (segments|chunks)"):
        decode_image(data, LIMIT)


def test_pixels_may_take_many_chunks() -> None:
    """A large PNG in thousands of chunks is accepted."""
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1700, 3), np.uint8)
    png = cv2.imencode(".png", noise)[1].tobytes()
    assert png.count(b"IDAT") > 100
    parts = [png[:33]]
    pixels = b"".join(_pixels(png))
    parts += [png_chunk(b"IDAT", pixels[at : at + 1024]) for at in range(0, len(pixels), 1024)]
    split = b"".join([*parts, png_chunk(b"IEND", b"")])
    assert len(parts) > 4096
    np.testing.assert_array_equal(decode_image(split, LIMIT), decode_image(png, LIMIT))


def _pixels(png: bytes) -> list[bytes]:
    at, found = 8, []
    while at < len(png):
        length = int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            found.append(png[at + 8 : at + 8 + length])
        at += length + 12
    return found


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_header_cut_anywhere_is_an_error(format: str) -> None:
    """Any bytes give a header or InvalidRequestError."""
    data = encoded(format)
    for end in range(1, 60):
        with pytest.raises(InvalidRequestError, match="truncated or corrupt|not a JPEG"):
            decode_image(data[:end], LIMIT)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
        (b"GIF89a" + bytes(100), "GIF"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"\xef\xbb\xbf\r\n<!doctype html><html>", "HTML"),
        (b"<html><body>404", "HTML"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b'{"error": "not found"}', "JSON"),
        (b"iVBORw0KGgoAAAANSUhEUgAA" * 9, "base64 text"),
        (b"data:image/png;base64,iVBORw0KGgo=", "a data: URL"),
    ],
)
def test_what_is_no_image_of_ours_is_named(data: bytes, kind: str) -> None:
    """The error names the format of the bytes and the accepted formats."""
    expected = f"bytes are {kind}.*not a JPEG, PNG, WebP or BMP image"
    with pytest.raises(InvalidRequestError, match=expected) as caught:
        decode_image(data, LIMIT)
    assert caught.value.field == "encoded_image"


@pytest.mark.parametrize("data", [b"no image", b"\0" * 100, b"RIFF\0\0\0\0WAVEfmt ", b"7xx"])
def test_what_is_not_known_is_not_guessed(data: bytes) -> None:
    """For bytes of no known type the error says only that they are no image."""
    with pytest.raises(InvalidRequestError, match="bytes are not a JPEG"):
        decode_image(data, LIMIT)
