"""Small files that would cost a decoder much memory or time."""

import io
import resource
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from PIL import Image

from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.decode import decode_image
from gradcam_server.images.header import read_header
from support.image_variants import SIZE, encoded, picture, png_chunk, with_chunk

LIMIT = 10_000_000


@pytest.fixture
def never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if OpenCV is called to decode."""

    def imdecode(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(cv2, "imdecode", imdecode)


PIXELS = 40 * 30
SCANS = 10
"""Number of scans that ``progressive`` returns."""


def progressive(mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", progressive=True, **options)
    return buffer.getvalue()


def with_scans(count: int, *, repeated: int = -1) -> bytes:
    """Repeats a scan of a JPEG until it has ``count`` scans."""
    data = progressive()
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    ends = [*(data.rfind(b"\xff\xc4", 0, at) for at in starts[1:]), len(data) - 2]
    at, end = starts[repeated], ends[repeated]
    bomb = data[:end] + data[at:end] * (count - SCANS) + data[end:]
    assert read_header(bomb).scans == count
    return bomb


def test_many_scans_are_refused(never_decoded: None) -> None:
    """1 MB of scans would keep a thread busy for half an hour, past any deadline."""
    data = progressive()
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * 100 + b"\xff\xd9"
    with pytest.raises(InvalidRequestError, match="corrupt"):
        decode_image(bomb, LIMIT)


def test_what_only_looks_like_scans_is_not_counted() -> None:
    """Scans in metadata, or after the end, where telephones append videos, are not counted."""
    data = progressive()
    comment = b"\xff\xda" * 1000
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment
    grown = data[:2] + segment + data[2:] + comment
    np.testing.assert_array_equal(decode_image(grown, LIMIT), decode_image(data, LIMIT))


@pytest.mark.parametrize("length", [1000, 2**31 - 1, 2**32 - 100])
def test_a_chunk_longer_than_the_file_is_refused(never_decoded: None, length: int) -> None:
    """A chunk longer than the file is refused: OpenCV would allocate its length."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    end = data.rindex(b"IEND") - 4
    bomb = data[:end] + length.to_bytes(4) + b"tEXt" + data[end:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequestError, match="corrupt"):
        decode_image(bomb, LIMIT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("repeated", [-1, 1, 0], ids=["refinement", "first of AC", "first of DC"])
def test_scans_of_a_large_image_are_fewer(never_decoded: None, repeated: int) -> None:
    """A scan costs the image's pixels: the largest image may have 20 scans, smaller images more."""
    with pytest.raises(InvalidRequestError, match="21 scans of 30 x 40 pixels, and may have 20"):
        decode_image(with_scans(21, repeated=repeated), PIXELS)
    with pytest.raises(InvalidRequestError, match="64 scans of 30 x 40 pixels, and may have 63"):
        decode_image(with_scans(64, repeated=repeated), PIXELS * 64 // 20 - 20)


def test_many_scans_of_a_small_image_are_decoded() -> None:
    """Some encoders write dozens of scans, which a small image may have."""
    assert decode_image(with_scans(20), PIXELS).shape == (40, 30, 3)
    assert decode_image(with_scans(64), PIXELS * 64 // 20).shape == (40, 30, 3)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(progressive(), id="4:2:0"),
        pytest.param(progressive(subsampling=0), id="4:4:4"),
        pytest.param(progressive("L"), id="grey"),
        pytest.param(progressive("CMYK"), id="CMYK"),
        pytest.param(progressive(optimize=True, restart_marker_rows=1), id="restarts"),
    ],
)
def test_progressive_images_of_the_largest_size_are_decoded(data: bytes) -> None:
    """Images with all scans that encoders write give the same pixels as without a limit."""
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode_image(data, PIXELS), expected)


def compressed_texts(kind: bytes, count: int) -> bytes:
    """A PNG of a few pixels; each text would be 7.9 MB, which libpng would decompress twice."""
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    text = png_chunk(kind, head + zlib.compress(bytes(7_900_000)))
    return with_chunk(encoded("PNG"), *[text] * count)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_many_compressed_texts_are_refused(never_decoded: None, kind: bytes) -> None:
    """A thousand compressed texts, in 8 MB, would take 15 s."""
    with pytest.raises(InvalidRequestError, match="more than 64 compressed texts"):
        decode_image(compressed_texts(kind, 65), LIMIT)


def test_compressed_texts_among_others_are_counted() -> None:
    """Compressed texts of all kinds are counted, before and after the pixels."""
    png = encoded("PNG")
    each = png_chunk(b"tEXt", b"a\0b") + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b"))
    parts = with_chunk(png, each * 40)
    with pytest.raises(InvalidRequestError, match="more than 64 compressed texts"):
        decode_image(parts[:-12] + each * 40 + parts[-12:], LIMIT)
    np.testing.assert_array_equal(decode_image(parts, LIMIT), decode_image(png, LIMIT))


def test_an_animated_png_may_have_a_quarter_of_the_pixels() -> None:
    """An animated PNG may have fewer pixels; its first frame is decoded."""
    frames = [picture().rotate(180)]
    animation = encoded("PNG", save_all=True, append_images=frames)
    pixels = SIZE[0] * SIZE[1]
    with pytest.raises(InvalidRequestError, match=f"animated PNG.*limit of {pixels - 1};"):
        decode_image(animation, 4 * pixels - 1)
    expected = decode_image(encoded("PNG"), pixels)
    np.testing.assert_array_equal(decode_image(animation, 4 * pixels), expected)


@contextmanager
def turns_of_another_thread() -> Iterator[list[int]]:
    """Counts how often another thread runs meanwhile."""
    turns, ended = [0], threading.Event()

    def count() -> None:
        while not ended.is_set():
            turns[0] += 1
            time.sleep(0)

    counting, interval = threading.Thread(target=count), sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    counting.start()
    try:
        yield turns
    finally:
        ended.set()
        counting.join()
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\0", b"\xff\xd0", b"\0"])
def test_endless_filling_does_not_keep_other_threads_waiting(filling: bytes) -> None:
    """Bytes that are no marker are skipped in windows, between which the event loop can run."""
    data = b"\xff\xd8" + filling * (31 * 2**20 // len(filling))
    found = []
    with turns_of_another_thread() as turns:
        for _ in range(20):
            before = turns[0]
            with pytest.raises(InvalidRequestError, match="the JPEG has no size"):
                read_header(data)
            found.append(turns[0] - before)
    assert statistics.median(found) >= 10


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\xd0"])
def test_markers_are_found_wherever_they_lie(filling: bytes) -> None:
    """Markers on the border of two windows are found."""
    jpeg = encoded("JPEG")
    for count in [*range(2**16 - 4, 2**16 + 4), 3 * 2**16 + 1]:
        header = read_header(jpeg[:2] + filling * count + jpeg[2:])
        assert header == read_header(jpeg) == (SIZE, 1, False)
