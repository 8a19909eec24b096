"""Recognises the type of bytes that are not an image a server decodes."""

import re

FORMATS_TEXT = "JPEG, PNG, WebP or BMP"
"""The formats of image files that a server decodes."""

_HEAD_BYTES = 1024
_MIN_BASE64 = 64
_WHITE_SPACE = b" \t\r\n"

# The first bytes of files. The first brand of an ISO media file names its type.
_SIGNATURES: tuple[tuple[str, bytes], ...] = (
    ("AVIF", rb"....ftyp(avif|avis)"),
    ("HEIC", rb"....ftyp(hei[cfsmx]|hev[cmsx])"),
    ("HEIC or AVIF", rb"....ftypm(if1|sf1|iaf)"),
    ("a video (MP4 or QuickTime)", rb"....(ftyp|moov)"),
    ("GIF", rb"GIF8[79]a"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("JPEG 2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a"),
    ("PDF", rb"%PDF-"),
    ("PostScript", rb"%!PS"),
    ("PSD", rb"8BPS"),
    ("an icon (ICO)", rb"\0\0[\x01\x02]\0[^\0]\0"),
    ("OpenEXR", rb"v/1\x01"),
    ("DICOM", rb".{128}DICM"),
    ("a NumPy file", rb"\x93NUMPY"),
    ("NetPBM (PPM, PGM)", rb"P[1-7]\s"),
    ("a ZIP archive", rb"PK\x03\x04"),
    ("compressed by gzip", rb"\x1f\x8b\x08"),
    ("a Git LFS pointer, not the file itself (git lfs pull)", rb"version https://git-lfs"),
)
# The first characters of text files, after white space; upper and lower case match.
_TEXTS: tuple[tuple[str, bytes], ...] = (
    ("SVG", rb"((<\?xml|<!--).*?)?<(!DOCTYPE svg|svg\b)"),
    ("HTML", rb"((<\?xml|<!--).*?)?<(!DOCTYPE html|html|head|body|title)\b"),
    ("XML", rb"<\?xml"),
    ("JSON", rb'\{\s*("|\})|\[\s*[{"\[]'),
    ("a data: URL (decode what follows its comma: base64.b64decode)", rb"data:[\w/+.-]*[;,]"),
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\r\n]{%d,}={0,2}\s*" % _MIN_BASE64)
_NAMED = [
    *((name, re.compile(pattern, re.DOTALL)) for name, pattern in _SIGNATURES),
    *((name, re.compile(rb"\s*" + text, re.DOTALL | re.IGNORECASE)) for name, text in _TEXTS),
]


def describe(data: bytes) -> str | None:
    """Names the type of data that is not an image of ``FORMATS_TEXT``.

    Args:
        data: The bytes; the first kilobyte is examined.

    Returns:
        For example "HEIC", "a ZIP archive" or "base64 text"; None if the type is unknown.
    """
    head = data[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf")
    for name, pattern in _NAMED:
        if pattern.match(head):
            return name
    if _BASE64.fullmatch(head):
        return "base64 text (decode it: base64.b64decode)"
    return None


def media_type(data: bytes) -> str | None:
    """Returns the media type of a file of ``FORMATS_TEXT``, such as "image/jpeg", or None."""
    for name, start in (("jpeg", b"\xff\xd8\xff"), ("png", b"\x89PNG\r\n"), ("bmp", b"BM")):
        if data.startswith(start):
            return f"image/{name}"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
