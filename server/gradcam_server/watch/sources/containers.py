"""Opens videos with PyAV, each kind of location with its options, and words its errors."""

from pathlib import Path

import av
from av.container import InputContainer
from av.error import EOFError as EndOfFileError
from av.error import ExitError, FFmpegError, InvalidDataError
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from gradcam_server.watch.sources.errors import SourceError
from gradcam_server.watch.sources.naming import SourceKind, SourceSpec, shown

TIMEOUT_S = 10.0
"""How long a silent source counts as there."""

# What a stream may refer to, such as the segments of a playlist: never files of this machine.
_STREAM_PROTOCOLS = (
    "crypto,data,http,https,httpproxy,rtmp,rtmps,rtmpt,rtmpts,rtp,rtsp,rtsps,srt,srtp,tcp,tls,udp"
)
_FILE_PROTOCOLS = "file,crypto,data"
# The format is known sooner without an estimate of the frame rate, which nobody needs. Packets read
# meanwhile are kept: a short stream may have no others.
_LIVE_OPTIONS = {"analyzeduration": "2000000", "fpsprobesize": "0"}

# A connection that is lost in the middle of a file goes on where it was.
_HTTP_FILE_OPTIONS = {"reconnect": "1", "reconnect_delay_max": "30"}


def open_video(spec: SourceSpec, timeout_s: float = TIMEOUT_S) -> InputContainer:
    """Opens the video of a source.

    Args:
        spec: A camera, stream or file.
        timeout_s: How long to wait for the network, to open it and for each packet.

    Raises:
        OSError, ValueError: It cannot be opened; ``reason`` has the words for it.
    """
    location, format_name = spec.location, None
    if spec.kind is SourceKind.CAMERA:
        format_name, options = "video4linux2,v4l2", dict(_LIVE_OPTIONS)
    elif "://" in location:
        options = _url_options(location, timeout_s)
        options |= _LIVE_OPTIONS if spec.kind is SourceKind.STREAM else _HTTP_FILE_OPTIONS
    else:
        # Without the scheme a name with a colon would be taken for a URL.
        location = f"file:{Path(location).absolute()}"
        options = {"protocol_whitelist": _FILE_PROTOCOLS}
    return av.open(location, "r", format=format_name, options=options, timeout=timeout_s)


def _url_options(location: str, timeout_s: float) -> dict[str, str]:
    options = {"protocol_whitelist": _STREAM_PROTOCOLS}
    scheme = location.partition("://")[0].lower()
    if scheme in ("rtsp", "rtsps"):
        # UDP loses packets, and does not pass most firewalls.
        options |= {"rtsp_transport": "tcp", "timeout": str(int(timeout_s * 1e6))}
    elif scheme in ("http", "https"):
        options["rw_timeout"] = str(int(timeout_s * 1e6))
    return options


def video_stream(container: InputContainer, spec: SourceSpec) -> VideoStream:
    """Returns the video stream of a container, ready to be decoded.

    Raises:
        SourceError: It has none, or none that can be decoded; the picture of an album's cover is
            none.
    """
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        raise SourceError(f"{spec.name}: {spec.shown} has no video")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise SourceError(
            f"{spec.name}: the video of {spec.shown} has a format that cannot be decoded"
        )
    # Those of several are one picture in several sizes, as of HLS: the largest is taken.
    chosen = max(streams, key=lambda stream: (stream.width or 0) * (stream.height or 0))
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    return chosen


def reason(error: BaseException, spec: SourceSpec) -> str:
    """Words an error of PyAV, without the location, which may hold credentials."""
    for kind, words in _WORDS.items():
        if isinstance(error, kind):
            return words
    if isinstance(error, SourceError):
        text = str(error).removeprefix(f"{spec.name}: ")
    else:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.replace(spec.location, shown(spec.location))


# Where FFmpeg's own words do not say what is wrong.
_WORDS: dict[type[Exception], str] = {
    ExitError: "no answer in time",
    EndOfFileError: "it ends too early",
    InvalidDataError: "the data are damaged, or no video of a known format",
}

READ_ERRORS = (FFmpegError, OSError, ValueError, RuntimeError)
"""What PyAV raises where a video cannot be opened or read."""
