"""Valid image files with unusual headers: large, broken or misleading metadata, rare variants.

Each file holds the same picture of 56 x 40 pixels.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

SIZE = (40, 56)
"""(height, width) of all files."""
_GARBAGE = bytes(range(256)) * 4
# Bytes that look like a frame header of another size, and like scans.
_DECOY = b"\xff\xc0\x00\x11\x08\x03\xe8\x07\xd0\x03" + b"\xff\xda" * 100


def picture() -> Image.Image:
    """A coloured gradient."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = np.stack([rows * 6, columns * 4, rows + columns], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(format: str, mode: str = "RGB", **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    picture().convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes, *, checksum: int | None = None) -> bytes:
    """A PNG chunk; its checksum may be wrong."""
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum or right)


def with_chunk(png: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks behind its IHDR."""
    return png[:33] + b"".join(chunks) + png[33:]


def with_segment(jpeg: bytes, marker: int, data: bytes, *, length: int | None = None) -> bytes:
    """A JPEG with a segment behind its first two bytes."""
    declared = len(data) + 2 if length is None else length
    return jpeg[:2] + bytes((0xFF, marker)) + declared.to_bytes(2) + data + jpeg[2:]


def variants() -> Iterator[tuple[str, bytes]]:
    """Yields names and files, which decoders can decode."""
    yield from _pngs()
    yield from _jpegs()
    yield from _webps()
    yield from _bmps()


def _pngs() -> Iterator[tuple[str, bytes]]:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    large = b"comment\0\0" + zlib.compress(bytes(2_000_000))
    profile = np.random.default_rng(0).bytes(1_500_000)
    png = encoded("PNG")
    yield "png-large-icc", encoded("PNG", icc_profile=profile)
    yield "png-large-ztxt", encoded("PNG", pnginfo=text)
    yield "png-many-ztxt", with_chunk(png, *[png_chunk(b"zTXt", large)] * 50)
    yield "png-broken-ztxt", with_chunk(png, png_chunk(b"zTXt", b"comment\0\0garbage"))
    yield "png-broken-itxt", with_chunk(png, png_chunk(b"iTXt", _GARBAGE))
    yield "png-broken-iccp", with_chunk(png, png_chunk(b"iCCP", _GARBAGE))
    yield "png-broken-exif", with_chunk(png, png_chunk(b"eXIf", _GARBAGE))
    yield "png-bad-checksum", with_chunk(png, png_chunk(b"tEXt", b"a\0b", checksum=1))
    yield "png-unknown-chunk", with_chunk(png, png_chunk(b"prVt", _GARBAGE))
    yield "png-decoy", with_chunk(png, png_chunk(b"prVt", b"IHDR" + struct.pack(">II", 9, 9)))
    yield "png-tail", png + _GARBAGE
    yield "png-rgba", encoded("PNG", "RGBA")
    yield "png-palette", encoded("PNG", "P")
    yield "png-1-bit", encoded("PNG", "1")


def _jpegs() -> Iterator[tuple[str, bytes]]:
    jpeg = encoded("JPEG")
    yield "jpeg-progressive", encoded("JPEG", progressive=True)
    yield "jpeg-gray", encoded("JPEG", "L")
    yield "jpeg-cmyk", encoded("JPEG", "CMYK")
    yield "jpeg-restarts", encoded("JPEG", restart_marker_blocks=1)
    yield "jpeg-large-icc", encoded("JPEG", icc_profile=_GARBAGE * 1500)
    yield "jpeg-broken-icc", with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\x09\x02" + _GARBAGE)
    yield "jpeg-broken-exif", with_segment(jpeg, 0xE1, b"Exif\0\0" + _GARBAGE)
    yield "jpeg-broken-mpo", with_segment(jpeg, 0xE2, b"MPF\0MM\0*" + _GARBAGE)
    yield "jpeg-broken-adobe", with_segment(jpeg, 0xED, b"Photoshop 3.0\0" + b"8BIM" + _GARBAGE)
    yield "jpeg-short-jfif", with_segment(jpeg, 0xE0, b"JFIF")
    yield "jpeg-decoy", with_segment(jpeg, 0xE1, _DECOY)
    yield "jpeg-thumbnail", with_segment(jpeg, 0xE1, b"Exif\0\0" + jpeg)
    yield "jpeg-length-of-0", with_segment(jpeg, 0xFE, b"", length=0)
    yield "jpeg-fill-bytes", jpeg[:2] + b"\xff" * 999 + jpeg[2:]
    yield "jpeg-tail", jpeg + _DECOY
    yield "jpeg-many-comments", jpeg[:2] + b"\xff\xfe\0\2" * 4000 + jpeg[2:]


def _webps() -> Iterator[tuple[str, bytes]]:
    yield "webp-lossy", encoded("WEBP")
    yield "webp-lossless", encoded("WEBP", lossless=True)
    yield "webp-alpha", encoded("WEBP", "RGBA")
    yield "webp-broken-icc", encoded("WEBP", icc_profile=_GARBAGE)
    yield "webp-broken-exif", encoded("WEBP", exif=b"Exif\0\0" + _GARBAGE)
    yield "webp-broken-xmp", encoded("WEBP", xmp=_GARBAGE)
    frames = [picture().rotate(180)]
    yield "webp-animation", encoded("WEBP", save_all=True, append_images=frames)


def _bmps() -> Iterator[tuple[str, bytes]]:
    bmp = encoded("BMP")
    yield "bmp", bmp
    yield "bmp-palette", encoded("BMP", "P")
    height, width = SIZE
    pixels = np.asarray(picture())[:, :, ::-1].tobytes()
    info = struct.pack("<iiHHIIiiII", width, -height, 1, 24, 0, 0, 1, -1, 2**31, 9)
    yield "bmp-top-down", _bmp(struct.pack("<I", 40) + info, pixels)
    more = info[:4] + struct.pack("<i", height) + info[8:] + bytes(124 - 40)
    yield "bmp-v5", _bmp(struct.pack("<I", 124) + more, pixels)
    yield "bmp-os2", _bmp(struct.pack("<IHHHH", 12, width, height, 1, 24), pixels)
    yield "bmp-gap", _bmp(struct.pack("<I", 40) + info + _GARBAGE, pixels)


def _bmp(header: bytes, pixels: bytes) -> bytes:
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, start) + header + pixels
