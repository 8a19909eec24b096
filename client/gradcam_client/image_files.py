"""Reads image files; errors name the type of a file or text that is not an image."""

import errno
import os
import re
from pathlib import Path

from gradcam_client.file_types import FORMATS_TEXT, describe

_MAX_SHOWN = 80
_MAX_NAME = 255  # longest file name of common file systems, in characters
_LINK = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a Path has lost one of two slashes
# The first characters of JPEG, PNG, WebP, BMP and GIF files in base64.
_BASE64_IMAGE = re.compile(r"\s*(/9j/|iVBORw0KGgo|UklGR|Qk|R0lGOD)")
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]+")


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """Reads an image file.

    Args:
        path: The file; a relative path begins in the working directory.

    Raises:
        OSError: The file cannot be read; ``FileNotFoundError`` if it does not exist.
        ValueError: ``path`` is a link or base64 text, or servers do not decode the format.
    """
    data = read_file(path)
    kind = describe(data)
    if kind is not None:
        raise ValueError(f"the file is {kind}, not a {FORMATS_TEXT} image")
    return data


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Reads a file of any format.

    Raises:
        OSError: As in ``read_image_file``.
        ValueError: ``path`` is a link or base64 text.
    """
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        text = os.fspath(path)
        mistaken = _mistaken_for_a_path(text)
        if mistaken is not None:
            raise ValueError(mistaken) from None
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise OSError(error.errno, error.strerror, shown(text)) from None
        raise


def shown(path: str | os.PathLike[str]) -> str:
    """Returns a path for an error message; a text too long for a file name is cut."""
    text = os.fspath(path)
    if len(text) <= _MAX_NAME:
        return text
    return f"{text[: _MAX_SHOWN // 2]}... ({len(text)} characters)"


def _mistaken_for_a_path(text: str) -> str | None:
    start = repr(text[: _MAX_SHOWN // 2]) + ("..." if len(text) > _MAX_SHOWN // 2 else "")
    if text.lower().startswith("data:"):
        return f"{start} is a data: URL, not a path; give base64.b64decode(url.partition(',')[2])"
    if _LINK.match(text):
        reads = "give ImageUrl(link), or " if text.lower().startswith("http") else ""
        return f"{start} is a link, not a path; {reads}download it, and give its path or its bytes"
    if _BASE64.fullmatch(text) and (_BASE64_IMAGE.match(text) or len(text) > _MAX_NAME):
        return (
            f"{start} is base64 text of {len(text)} characters, not a path; give "
            "base64.b64decode(text)"
        )
    if "\0" in text:
        return f"{start} is not a path: it has a null character; give a file's content as bytes"
    return None
