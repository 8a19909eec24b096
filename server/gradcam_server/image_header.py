"""The size of an image file, from its header; what would cost a decoder too much is refused.

All that is read of a file is its structure: the segments of a JPEG, the chunks of a PNG. Metadata
(ICC profiles, EXIF, text) is passed over unread, as the decoders do. A step is one segment or
chunk, however long it is, and their number is bounded.
"""

import re
import struct
from collections.abc import Callable
from typing import TypeAlias

from gradcam_client.file_types import FORMATS_TEXT, describe
from gradcam_server.errors import InvalidRequestError

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"

# Begins a segment, whose length follows; all but the last. Between segments, and in compressed
# data, libjpeg passes over all that is none.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
# Start of frame, which holds the size: all of 0xc0 to 0xcf but tables (DHT, JPG, DAC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MAX_SCANS = 64  # encoders make about ten; a decoder passes over the whole image for each
_MAX_SEGMENTS = _MAX_CHUNKS = 4096
# Pixels may take more chunks, if these have so many bytes in the mean; encoders write 8 KiB.
_BYTES_PER_CHUNK = 1024

_CHUNK_BYTES = 12  # a PNG chunk's length, kind and checksum
_OS2_BMP_HEADER_BYTES = 12
_PEEK_BYTES, _PEEK_SEGMENTS = 2**16, 256


def read_size(data: bytes) -> Size:
    """Reads the size that an image file declares; EXIF may turn it.

    Args:
        data: A JPEG, PNG, WebP or BMP file, as long as it is.

    Returns:
        Height and width in pixels, not checked.

    Raises:
        InvalidRequestError: Not a file of these formats; its header is corrupt; or it has more
            segments, chunks or scans, or declares longer chunks, than files of its length have.
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
        Height and width in pixels; None if the first 64 KiB, or 256 segments, do not say them.
    """
    head = data[:_PEEK_BYTES]
    try:
        if head.startswith(JPEG):
            return _jpeg_size(head, _PEEK_SEGMENTS)
        return _png_declared(head) if head.startswith(_PNG) else read_size(head)
    except (InvalidRequestError, struct.error):
        return None


def _corrupt(why: str) -> InvalidRequestError:
    return InvalidRequestError("encoded_image", f"the image is truncated or corrupt: {why}")


def _jpeg_size(data: bytes, max_segments: int = _MAX_SEGMENTS) -> Size:
    size: Size | None = None
    scans, at = 0, len(JPEG)
    for _ in range(max_segments):
        marker = _MARKER.search(data, at)
        # What follows the end does not count: telephones append videos.
        if marker is None or marker[0][1] == _END_OF_IMAGE:
            break
        kind, at = marker[0][1], marker.end()
        if kind in _FRAMES and size is None:  # libjpeg refuses a second one
            size = struct.unpack_from(">3xHH", data, at)
        elif kind == _START_OF_SCAN:
            scans += 1
            if size is None:
                raise _corrupt("the JPEG has no size before its pixels")
            if scans > _MAX_SCANS:
                raise _corrupt(f"the JPEG has more than {_MAX_SCANS} scans")
        # The length counts its own two bytes; libjpeg takes a lesser one for these two.
        at += max(int.from_bytes(data[at : at + 2]), 2)
    else:
        raise _corrupt(f"the JPEG has more than {max_segments} segments")
    if size is None:
        raise _corrupt("the JPEG has no size")
    return size


def _png_declared(data: bytes) -> Size:
    kind, width, height = struct.unpack_from(">4x4sII", data, len(_PNG))
    if kind != b"IHDR":
        raise _corrupt("the PNG does not begin with its size")
    return height, width


def _png_size(data: bytes) -> Size:
    size = _png_declared(data)
    at, max_chunks = len(_PNG), _MAX_CHUNKS + len(data) // _BYTES_PER_CHUNK
    for _ in range(max_chunks):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += length + _CHUNK_BYTES
        # OpenCV takes the memory that a chunk declares, up to 4 GiB, before it reads it.
        if at > len(data):
            raise _corrupt("a chunk of the PNG is longer than the file")
        if kind == b"IEND":  # what follows does not count
            return size
    raise _corrupt(f"the PNG has more than {max_chunks} chunks")


def _webp_size(data: bytes) -> Size:
    (kind,) = struct.unpack_from("4s", data, 12)
    if kind == b"VP8X":  # 24 bits each, less one
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":  # 14 bits each, less one
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":  # 14 bits each, beside two of scaling
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise _corrupt("the WebP file does not begin with its size")
    return height, width


def _bmp_size(data: bytes) -> Size:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    is_old = header_bytes == _OS2_BMP_HEADER_BYTES
    width, height = struct.unpack_from("<HH" if is_old else "<ii", data, 18)
    return abs(height), width  # a negative height: its rows begin at the top


_READERS: dict[re.Pattern[bytes], Callable[[bytes], Size]] = {
    re.compile(JPEG): _jpeg_size,
    re.compile(_PNG): _png_size,
    re.compile(b"RIFF....WEBP", re.DOTALL): _webp_size,
    re.compile(b"BM"): _bmp_size,
}
