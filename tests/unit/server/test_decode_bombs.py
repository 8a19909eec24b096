"""Small files that would cost a decoder much memory or time."""

import io
import resource

import cv2
import numpy as np
import pytest
from PIL import Image

from gradcam_server.decode import decode_image
from gradcam_server.errors import InvalidRequestError

LIMIT = 10_000_000


@pytest.fixture
def never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV is not even asked."""

    def imdecode(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(cv2, "imdecode", imdecode)


def progressive() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()


def test_many_scans_are_refused(never_decoded: None) -> None:
    """A megabyte of them would keep a thread busy for half an hour, past any deadline."""
    data = progressive()
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * 100 + b"\xff\xd9"
    with pytest.raises(InvalidRequestError, match="corrupt"):
        decode_image(bomb, LIMIT)


def test_what_only_looks_like_scans_is_not_counted() -> None:
    """Neither in metadata nor behind the end, where telephones append videos."""
    data = progressive()
    comment = b"\xff\xda" * 1000
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment
    grown = data[:2] + segment + data[2:] + comment
    np.testing.assert_array_equal(decode_image(grown, LIMIT), decode_image(data, LIMIT))


@pytest.mark.parametrize("length", [1000, 2**31 - 1, 2**32 - 100])
def test_a_chunk_longer_than_the_file_is_refused(never_decoded: None, length: int) -> None:
    """OpenCV would take as much memory as it declares."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    end = data.rindex(b"IEND") - 4
    bomb = data[:end] + length.to_bytes(4) + b"tEXt" + data[end:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequestError, match="corrupt"):
        decode_image(bomb, LIMIT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
