"""Reads ``NAME=SOURCE`` or ``SOURCE``: tells its kind and its name, and keeps credentials out.

0, /dev/video2               a camera
rtsp://..., http://...       a stream; over HTTP, a video file by its suffix
clip.mp4                     a video file
incoming/                    a folder that fills
"""

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

from gradcam_server.watch.sources.errors import SourceError

STREAM_SCHEMES = ("http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
_NEEDS_HOST = frozenset(STREAM_SCHEMES) - {"udp", "rtp", "srt", "tcp"}
_VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"}
)
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_NAMED = re.compile(f"({_NAME})=(.*)", re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_VIDEO_DEVICE = re.compile(r"/dev/(video\d+|v4l/.+)")
_FORMS = (
    "a camera (0, /dev/video0), a stream (rtsp://..., http://...), a video file or a folder, each "
    "with a name before it if you like (door=rtsp://...)"
)


class SourceKind(StrEnum):
    """The kinds of sources."""

    CAMERA = "camera"
    STREAM = "stream"
    FILE = "file"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source as it was named on the command line.

    Attributes:
        name: Unique among the sources; letters, digits, "_", "." and "-", so that it can be part
            of a file's name.
        kind: Its kind.
        location: The device, URL or path. A URL may hold credentials: it is neither logged nor
            part of ``repr``.
    """

    name: str
    kind: SourceKind
    location: str = field(repr=False)

    @property
    def shown(self) -> str:
        """The location without what may be secret: of a URL, its scheme, host and port."""
        return shown(self.location)


def shown(location: str) -> str:
    """Returns a location for people: of a URL only scheme, host and port.

    User names and passwords are also found in paths and queries of cameras' URLs, so these are
    left out, too.
    """
    if not _SCHEME.match(location):
        return location
    scheme = location.partition("://")[0].lower()
    try:
        url = urlsplit(location)
        host, port = url.hostname or "", url.port
    except ValueError:
        return f"{scheme}://..."
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}" + (f":{port}" if port else "")


def parse_sources(texts: Iterable[str]) -> list[SourceSpec]:
    """Reads the sources of a command line.

    Args:
        texts: ``NAME=SOURCE`` or ``SOURCE``. A path that exists is never split at its "=". A
            source without a name is named after its device, host or file, with "-2" and so on
            where that name is taken.

    Raises:
        SourceError: There is none, a name is given twice, or a source is of no known kind.
    """
    found = [_parse(text) for text in texts]
    if not found:
        raise SourceError(f"there is no source to watch; name {_FORMS}")
    given = [name for name, _, _ in found if name]
    for name in given:
        if given.count(name) > 1:
            raise SourceError(f"two sources have the name {name!r}; give each a name of its own")
    taken = set(given)
    specs = []
    for name, kind, location in found:
        unique = name or _unique(_default_name(kind, location), taken)
        taken.add(unique)
        specs.append(SourceSpec(unique, kind, location))
    return specs


def _parse(text: str) -> tuple[str, SourceKind, str]:
    """Returns the given name, which may be empty, the kind and the location."""
    if "\0" in text:
        raise SourceError("a source holds a zero byte, which no path or URL can have")
    name, location = "", text
    match = _NAMED.fullmatch(text)
    if match and not _exists(text):
        name, location = match.groups()
    elif re.match(r"[^=/\\:?]*=", text) and not _exists(text):
        before = text.partition("=")[0]
        raise SourceError(
            f"the name {before!r} before '=' is not one: it begins with a letter or digit, and has "
            "up to 64 letters, digits, '_', '.' or '-'; of a path with '=' write ./ before it"
        )
    if not location.strip():
        raise SourceError(f"an empty source; name {_FORMS}")
    kind, location = _kind_of(location)
    return name, kind, location


def _kind_of(location: str) -> tuple[SourceKind, str]:
    if location.isascii() and location.isdecimal():
        return SourceKind.CAMERA, f"/dev/video{int(location)}"
    if _VIDEO_DEVICE.fullmatch(location):
        return SourceKind.CAMERA, location
    if match := _SCHEME.match(location):
        return _kind_of_url(match[1].lower(), location)
    return _kind_of_path(location), location


def _kind_of_url(scheme: str, location: str) -> tuple[SourceKind, str]:
    try:
        url: SplitResult = urlsplit(location)
        host = url.hostname
        _ = url.port
    except ValueError as error:
        # The error's own text may hold the password.
        raise SourceError(f"{shown(location)} is not a valid URL: check host and port") from error
    if scheme == "file":
        path = unquote(url.path)
        return _kind_of_path(path), path
    if scheme not in STREAM_SCHEMES:
        raise SourceError(
            f"{scheme}:// is no stream that can be watched; these are: "
            f"{', '.join(f'{name}://' for name in (*STREAM_SCHEMES, 'file'))}"
        )
    if scheme in _NEEDS_HOST and not host:
        raise SourceError(f"a {scheme}:// URL without a host; write {scheme}://HOST[:PORT]/PATH")
    is_file = scheme in ("http", "https") and (
        PurePosixPath(url.path).suffix.lower() in _VIDEO_SUFFIXES
    )
    return (SourceKind.FILE if is_file else SourceKind.STREAM), location


def _kind_of_path(location: str) -> SourceKind:
    try:
        mode = Path(location).stat().st_mode
    except FileNotFoundError:
        hint = ""
        if re.fullmatch(r"[\w.-]+(:\d+)?/\S*|[\w.-]+:\d+", location):
            hint = f"; a stream begins with its scheme, such as rtsp://{shown(location)}"
        raise SourceError(
            f"{location!r} is neither a file nor a folder here{hint}; name {_FORMS}"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{location!r} cannot be read: {reason}") from None
    if stat.S_ISDIR(mode):
        return SourceKind.FOLDER
    if stat.S_ISREG(mode):
        return SourceKind.FILE
    if stat.S_ISCHR(mode):
        return SourceKind.CAMERA
    raise SourceError(f"{location!r} is neither a file, a folder nor a camera's device")


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _default_name(kind: SourceKind, location: str) -> str:
    if kind is SourceKind.CAMERA:
        raw = PurePosixPath(location).name
    elif _SCHEME.match(location):
        raw = urlsplit(location).hostname or location.partition("://")[0]
    else:
        path = Path(location).absolute()
        raw = path.stem if kind is SourceKind.FILE else path.resolve().name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", raw).strip("-._")[:48] or kind.value


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 2, name
    while unique in taken:
        unique = f"{name}-{number}"
        number += 1
    return unique
