"""Reads the header of an image file; refuses files that would cost a decoder too much.

Only the structure of a file is read: the segments of a JPEG, the chunks of a PNG. Metadata (ICC
profiles, EXIF, text) is skipped. A step skips one segment or chunk of any length, and the number
of steps is bounded.
"""

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradcam_client.file_types import FORMATS_TEXT, describe
from gradcam_server.errors import InvalidRequestError

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"

_WINDOW_BYTES = 1 << 16
# Start of frame, which holds the size: 0xc0 to 0xcf without the tables (DHT, JPG, DAC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# The second bytes of markers that begin a segment, whose length follows, or end the image.
_KINDS = frozenset((*range(0x02, 0xD0), *range(0xD9, 0xFF)))
_MAX_SCANS = 64  # encoders write about ten; for each a decoder passes over the whole image
_MAX_SEGMENTS = _MAX_CHUNKS = 4096
# A further chunk is allowed for each 1 KiB of the file; encoders write chunks of 8 KiB.
_BYTES_PER_CHUNK = 1024
# libpng decompresses up to 8 MB of each, twice, although no caller needs them: 15 ms.
_COMPRESSED_CHUNKS = frozenset({b"zTXt", b"iTXt", b"iCCP"})
_MAX_COMPRESSED_CHUNKS = 64

_CHUNK_BYTES = 12  # a PNG chunk's length, kind and checksum
_OS2_BMP_HEADER_BYTES = 12
_PEEK_BYTES, _PEEK_SEGMENTS = 2**16, 256


class Header(NamedTuple):
    """The size and structure that a file declares.

    Attributes:
        size: Height and width in pixels, unchecked, before EXIF turns the image.
        scans: Number of passes of a decoder over the whole image; 0 in a JPEG without pixels.
        is_animated_png: Whether it is an animated PNG, for which OpenCV takes several times the
            memory of another PNG.
    """

    size: Size
    scans: int = 1
    is_animated_png: bool = False


def read_header(data: bytes) -> Header:
    """Reads the header of an image file.

    Args:
        data: The whole JPEG, PNG, WebP or BMP file.

    Raises:
        InvalidRequestError: Not a file of these formats; the header is corrupt; or the file has
            too many segments, chunks or scans, or a chunk that is longer than the file.
    """
    if not data:
        raise InvalidRequestError("encoded_image", f"the image is empty; send a {FORMATS_TEXT}")
    for signature, read in _READERS.items():
        if signature.match(data):
            try:
                return read(data)
            except struct.error:
                raise _corrupt("the file ends within its header") from None
    kind = describe(data)
    raise InvalidRequestError(
        "encoded_image",
        f"the {len(data)} bytes are {f'{kind}, ' if kind else ''}not a {FORMATS_TEXT} image",
    )


def peek_size(data: bytes) -> Size | None:
    """Reads the size from the beginning of a file in well under a millisecond, unchecked.

    Args:
        data: Any file.

    Returns:
        Height and width in pixels; None if the first 64 KiB, or 256 segments, do not hold them.
    """
    head = data[:_PEEK_BYTES]
    try:
        if head.startswith(JPEG):
            return _jpeg_size(head)
        return _png_size(head) if head.startswith(_PNG) else read_header(head).size
    except (InvalidRequestError, struct.error):
        return None


def _corrupt(why: str) -> InvalidRequestError:
    return InvalidRequestError("encoded_image", f"the image is truncated or corrupt: {why}")


class _Markers:
    """The markers of a JPEG, from its beginning to its end.

    Most segments follow each other, so the next marker is where the segment before it ends. If not,
    NumPy searches each window of the file once, without the interpreter's lock, so a file of only
    0xff bytes takes no more work than another file.
    """

    def __init__(self, data: bytes) -> None:
        self._bytes = data
        self._data = np.frombuffer(data, np.uint8)
        self._end = 0
        self._found: NDArray[np.intp] = np.empty(0, np.intp)

    def find(self, at: int) -> int | None:
        """Returns the offset of the first marker from ``at`` on, which never decreases."""
        pair = self._bytes[at : at + 2]
        if len(pair) == 2 and pair[0] == 0xFF and pair[1] in _KINDS:
            return at
        while True:
            index = int(np.searchsorted(self._found, at))
            if index < len(self._found):
                return int(self._found[index])
            at = max(at, self._end)
            if at >= len(self._data) - 1:
                return None
            self._end = at + _WINDOW_BYTES
            self._found = _find_markers(self._data[at : self._end + 1]) + at


def _find_markers(data: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Returns the offsets of 0xff before one of ``_KINDS``.

    Between segments, and in compressed data, libjpeg skips all other bytes.
    """
    kinds = data[1:]
    # The type is unsigned, so a negative difference wraps to a large number.
    are_kinds = (kinds - 0x02 < 0xD0 - 0x02) | (kinds - 0xD9 < 0xFF - 0xD9)
    return np.flatnonzero((data[:-1] == 0xFF) & are_kinds)


def _segments(data: bytes, max_segments: int) -> Iterator[tuple[int, int]]:
    """Yields the kind of each segment of a JPEG, and the offset of what follows its marker.

    Raises:
        InvalidRequestError: It has more than ``max_segments``.
    """
    markers, at = _Markers(data), len(JPEG)
    for _ in range(max_segments):
        found = markers.find(at)
        # Bytes after the end are ignored: telephones append videos.
        if found is None or (kind := data[found + 1]) == _END_OF_IMAGE:
            return
        at = found + 2
        yield kind, at
        # The length includes its own two bytes; libjpeg reads a smaller length as 2.
        at += max(int.from_bytes(data[at : at + 2]), 2)
    raise _corrupt(f"the JPEG has more than {max_segments} segments")


def _frame_size(data: bytes, at: int) -> Size:
    height, width = struct.unpack_from(">3xHH", data, at)
    return height, width


def _jpeg_size(data: bytes) -> Size | None:
    for kind, at in _segments(data, _PEEK_SEGMENTS):
        if kind in _FRAMES:
            return _frame_size(data, at)
        if kind == _START_OF_SCAN:
            break
    return None


def _jpeg_header(data: bytes) -> Header:
    size: Size | None = None
    scans = 0
    for kind, at in _segments(data, _MAX_SEGMENTS):
        if kind in _FRAMES and size is None:  # libjpeg refuses a second size
            size = _frame_size(data, at)
        elif kind == _START_OF_SCAN:
            scans += 1
            if size is None:
                raise _corrupt("the JPEG has no size before its pixels")
            if scans > _MAX_SCANS:
                raise _corrupt(f"the JPEG has more than {_MAX_SCANS} scans")
    if size is None:
        raise _corrupt("the JPEG has no size")
    return Header(size, scans)


def _png_size(data: bytes) -> Size:
    kind, width, height = struct.unpack_from(">4x4sII", data, len(_PNG))
    if kind != b"IHDR":
        raise _corrupt("the PNG does not begin with its size")
    return height, width


def _png_header(data: bytes) -> Header:
    size = _png_size(data)
    at, compressed, is_animated = len(_PNG), 0, False
    max_chunks = _MAX_CHUNKS + len(data) // _BYTES_PER_CHUNK
    for _ in range(max_chunks):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += length + _CHUNK_BYTES
        # OpenCV allocates the memory that a chunk declares, up to 4 GiB, before it reads the chunk.
        if at > len(data):
            raise _corrupt("a chunk of the PNG is longer than the file")
        if kind == b"IEND":  # bytes after it are ignored
            return Header(size, is_animated_png=is_animated)
        is_animated |= kind == b"acTL"
        compressed += kind in _COMPRESSED_CHUNKS
        if compressed > _MAX_COMPRESSED_CHUNKS:
            raise _corrupt(f"the PNG has more than {_MAX_COMPRESSED_CHUNKS} compressed texts")
    raise _corrupt(f"the PNG has more than {max_chunks} chunks")


def _webp_header(data: bytes) -> Header:
    (kind,) = struct.unpack_from("4s", data, 12)
    if kind == b"VP8X":  # width - 1 and height - 1, 24 bits each
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":  # width - 1 and height - 1, 14 bits each
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":  # 14 bits each, with two bits of scaling
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise _corrupt("the WebP file does not begin with its size")
    return Header((height, width))


def _bmp_header(data: bytes) -> Header:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    is_old = header_bytes == _OS2_BMP_HEADER_BYTES
    width, height = struct.unpack_from("<HH" if is_old else "<ii", data, 18)
    return Header((abs(height), width))  # negative if the rows begin at the top


_READERS: dict[re.Pattern[bytes], Callable[[bytes], Header]] = {
    re.compile(JPEG): _jpeg_header,
    re.compile(_PNG): _png_header,
    re.compile(b"RIFF....WEBP", re.DOTALL): _webp_header,
    re.compile(b"BM"): _bmp_header,
}
