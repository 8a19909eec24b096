"""Writes MP4 files with the heat and the class drawn in, one for each source.

The files are fragmented: each fragment is complete when it is written, so a file is readable after
kill -9, but for its last second. Of a source that ends, the file becomes an ordinary, indexed MP4
file when it is closed; a live source may run for months, and the index would grow with it.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import av
import cv2
import numpy as np
from av.codec.codec import UnknownCodecError
from av.video.reformatter import Colorspace, VideoReformatter

from gradcam_server.batch.errors import OutputError
from gradcam_server.watch.frames import Frame, FrameResult, Pixels
from gradcam_server.watch.outputs.draw import Painter, Style

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

SUFFIX = ".mp4"
_CODECS = ("libx264", "libopenh264", "mpeg4")
_OPTIONS = {
    # superfast writes 1.3 times the frames a second of veryfast, with the same error, into files
    # that are 15 % larger. zerolatency: no frame waits in the encoder, each is written at once.
    "libx264": {"preset": "superfast", "crf": "23", "tune": "zerolatency"},
}
_BIT_RATE = 4_000_000  # of the other codecs, which have no constant quality
# Exact for 24, 25, 30, 30/1.001 and 60 frames a second; MPEG-4 allows no more than 65,535.
_TIME_BASE = Fraction(1, 60_000)
_KEYFRAME_INTERVAL = 60
_RATE = 30  # for the encoder's choice of a level; time stamps are those of the frames
_BT709 = 1  # said in the file, because players guess by the size
_FRAGMENT_US = 1_000_000
# The duration of a frame has 32 bits. After an outage, or if a clock is set, a longer pause than
# this becomes so long.
_MAX_PAUSE = int(3600 / _TIME_BASE)
_FRAGMENTED = "frag_keyframe+empty_moov+default_base_moof"
_INDEXED_AT_THE_END = f"{_FRAGMENTED}+hybrid_fragmented"
# Without a list of the fragments at its end, which would be kept in memory until then.
_WITHOUT_INDEX = f"{_FRAGMENTED}+skip_trailer"


class VideoOutput:
    """One video file for each source.

    Args:
        output: A folder, or a file that ends in .mp4; with several sources the name of each is
            added to that of the file.
        sources: The names of the sources.
        style: How the heat is drawn.

    Attributes:
        paths: The files, by source. A file appears with the first frame of its source.
        at_risk: What may be incomplete if the process ends at once.

    Raises:
        OutputError: ``output`` is no such name, or the folder cannot be made.
    """

    def __init__(self, output: Path, sources: Sequence[str], style: Style | None = None) -> None:
        self.paths = paths_of(output, sources)
        self.at_risk = f"-o {output} (the last second of each video)"
        self._painter = Painter(style)
        self._files: dict[str, VideoFile] = {}

    def write(self, result: FrameResult) -> None:
        """Draws and encodes a frame.

        Raises:
            OutputError: The file cannot be written.
        """
        name = result.frame.source
        if name not in self._files:
            self._files[name] = VideoFile(self.paths[name], result.frame)
        self._files[name].add(self._painter.draw(result), result.frame.time_s)

    def close(self) -> None:
        """Finishes all files. A second call does nothing.

        Raises:
            OutputError: A file cannot be written; the others are finished all the same.
        """
        with ExitStack() as stack:
            while self._files:
                _, file = self._files.popitem()
                stack.callback(file.close)


def paths_of(output: Path, sources: Sequence[str]) -> dict[str, Path]:
    """Returns the file of each source, and makes the folder.

    Raises:
        OutputError: The name has another suffix, or the folder cannot be made.
    """
    is_file = output.suffix.lower() == SUFFIX and not output.is_dir()
    if not is_file and output.suffix and not output.is_dir():
        raise OutputError(f"-o {output}: a file must end in {SUFFIX}")
    folder = output.parent if is_file else output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"-o {output}: {folder} cannot be made ({error.strerror})") from error
    if is_file and len(sources) == 1:
        return {sources[0]: output}
    beginning = f"{output.stem}-" if is_file else ""
    paths: dict[str, Path] = {}
    for name in sources:
        base, number = beginning + _plain(name), 2
        path = folder / f"{base}{SUFFIX}"
        while path in paths.values():
            path, number = folder / f"{base}-{number}{SUFFIX}", number + 1
        paths[name] = path
    return paths


def _plain(name: str) -> str:
    """Returns a name as a part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)


class VideoFile:
    """An MP4 file, H.264 if PyAV has an encoder for it.

    Args:
        path: The file; it is overwritten.
        first: The first frame, which decides the size, and whether the file gets an index.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path, first: Frame) -> None:
        self._path = path
        height, width = first.image.shape[:2]
        self._size = width + width % 2, height + height % 2  # yuv420p halves them
        self._begin_s = first.time_s
        self._last: int | None = None
        # It keeps its tables from frame to frame.
        self._reformatter = VideoReformatter()
        flags = _WITHOUT_INDEX if first.is_live else _INDEXED_AT_THE_END
        options = {"movflags": flags, "frag_duration": str(_FRAGMENT_US), "flush_packets": "1"}
        self._container: OutputContainer = self._writing(
            lambda: av.open(str(path), "w", format="mp4", options=options)
        )
        self._stream = self._add_stream()

    def _add_stream(self) -> "VideoStream":
        codec = codec_name()
        added = self._container.add_stream(codec, rate=_RATE, options=_OPTIONS.get(codec, {}))
        stream = cast("VideoStream", added)
        context = stream.codec_context
        context.width, context.height = self._size
        context.pix_fmt = "yuv420p"
        context.gop_size = _KEYFRAME_INTERVAL
        context.max_b_frames = 0
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.time_base = stream.time_base = _TIME_BASE
        if codec not in _OPTIONS:
            context.bit_rate = _BIT_RATE
        return stream

    def add(self, image: Pixels, time_s: float) -> None:
        """Adds a frame.

        Args:
            image: uint8 RGB (height, width, 3); fitted to the size of the first one.
            time_s: Its time. The file begins with that of the first frame.

        Raises:
            OutputError: The file cannot be written.
        """
        rgb = av.VideoFrame.from_numpy_buffer(fit(image, self._size), format="rgb24")
        frame = self._reformatter.reformat(
            rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, threads=1
        )
        frame.pts, frame.time_base = self._time_stamp(time_s), _TIME_BASE
        self._writing(lambda: self._container.mux(self._stream.encode(frame)))

    def _time_stamp(self, time_s: float) -> int:
        """Returns a time in units of ``_TIME_BASE``, after the last one even if a clock is set."""
        if self._last is None:
            self._last = 0
            return 0
        earliest, latest = self._last + 1, self._last + _MAX_PAUSE
        time_stamp = min(max(round((time_s - self._begin_s) / _TIME_BASE), earliest), latest)
        if time_stamp in (earliest, latest):
            self._begin_s = time_s - float(time_stamp * _TIME_BASE)
        self._last = time_stamp
        return time_stamp

    def close(self) -> None:
        """Finishes the file.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            self._writing(lambda: self._container.mux(self._stream.encode(None)))
        finally:
            self._writing(self._container.close)

    def _writing(self, step: Callable[[], _T]) -> _T:
        try:
            return step()
        except (OSError, av.FFmpegError) as error:
            reason = error.strerror or str(error)
            raise OutputError(f"{self._path}: it cannot be written ({reason})") from error


def fit(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Fits an image to a size: the shape is kept, and what is left is black.

    An image that is one pixel smaller in width or height is not scaled: its edge is repeated.

    Args:
        image: uint8 RGB (height, width, 3).
        size: Width and height.
    """
    width, height = size
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return np.ascontiguousarray(image)
    if 0 <= height - rows <= 1 and 0 <= width - columns <= 1:
        bottom, right = height - rows, width - columns
        padded = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        return np.asarray(padded, np.uint8)
    scale = min(width / columns, height / rows)
    scaled_size = max(1, round(columns * scale)), max(1, round(rows * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image, scaled_size, interpolation=kind)
    fitted = np.zeros((height, width, 3), np.uint8)
    top, left = (height - scaled_size[1]) // 2, (width - scaled_size[0]) // 2
    fitted[top : top + scaled_size[1], left : left + scaled_size[0]] = scaled
    return fitted


@cache
def codec_name() -> str:
    """Returns the best encoder that PyAV has, and logs once if it is not the best of all.

    Raises:
        OutputError: There is none.
    """
    for name in _CODECS:
        try:
            av.codec.Codec(name, "w")
        except UnknownCodecError:
            continue
        if name != _CODECS[0]:
            logger.warning("PyAV has no encoder %s: videos are written by %s", _CODECS[0], name)
        return name
    raise OutputError(f"PyAV has no encoder for videos: none of {', '.join(_CODECS)}")
