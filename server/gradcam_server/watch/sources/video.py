"""A video file: every frame, in order and upright, with its presentation time."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator

from av.container import InputContainer
from av.error import EOFError as EndOfFileError
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from gradcam_server.watch.frames import Frame
from gradcam_server.watch.sources.containers import (
    READ_ERRORS,
    open_video,
    reason,
    video_stream,
)
from gradcam_server.watch.sources.errors import SourceError
from gradcam_server.watch.sources.events import Event, Report, SourceEvent, ignore
from gradcam_server.watch.sources.grid import nearest_to_grid
from gradcam_server.watch.sources.naming import SourceSpec
from gradcam_server.watch.sources.pixels import PixelConverter

_log = logging.getLogger(__name__)

_MICROSECONDS = 1e6
# A file that is broken from some place on is given up after as many errors in a row.
_MAX_ERRORS = 100

_Timed = tuple[float, tuple[int, VideoFrame]]


class VideoFile:
    """Reads a video file, or one behind an HTTP URL, once.

    Args:
        spec: The file.
        fps: Frames per second of the video's own time that are read, those nearest to its grid;
            None reads every frame.
        report: Receives an event for each broken frame, which is left out.
    """

    is_live = False

    def __init__(self, spec: SourceSpec, fps: float | None = None, report: Report = ignore) -> None:
        self._spec, self._fps, self._report = spec, fps, report
        self._is_closed = threading.Event()

    @property
    def name(self) -> str:
        """The source's name."""
        return self._spec.name

    def frames(self) -> Iterator[Frame]:
        """Yields the frames in the order of presentation.

        ``number`` counts all frames that could be decoded, ``time_s`` begins with the file.

        Raises:
            SourceError: The file cannot be opened, or has no video.
        """
        try:
            container = open_video(self._spec)
        except READ_ERRORS as error:
            raise SourceError(
                f"{self.name}: {self._spec.shown} cannot be read as a video: "
                f"{reason(error, self._spec)}"
            ) from None
        with container:
            stream = video_stream(container, self._spec)
            stream.thread_type = "AUTO"
            converter = PixelConverter()
            timed: Iterable[_Timed] = self._timed(container, stream)
            if self._fps is not None:
                timed = nearest_to_grid(timed, self._fps)
            for time_s, (number, frame) in timed:
                try:
                    image = converter.upright(frame)
                except READ_ERRORS as error:
                    self._broken(error)
                    continue
                yield Frame(
                    source=self.name,
                    number=number,
                    time_s=time_s,
                    read_at=time.monotonic(),
                    image=image,
                    is_live=False,
                )
                if self._is_closed.is_set():
                    return

    def done(self, frame: Frame) -> None:
        """Does nothing: a file is read from its beginning each time."""

    def close(self) -> None:
        """Ends ``frames()`` at its next frame."""
        self._is_closed.set()

    def _timed(self, container: InputContainer, stream: VideoStream) -> Iterator[_Timed]:
        """Yields time, number and frame; a frame without a time stamp follows the last."""
        start_s = (container.start_time or 0) / _MICROSECONDS
        step_s = float(1 / stream.average_rate) if stream.average_rate else 0.04
        last_s = -step_s
        for number, frame in enumerate(self._decoded(container, stream)):
            last_s = last_s + step_s if frame.time is None else frame.time - start_s
            yield last_s, (number, frame)

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        for packet in self._packets(container, stream):
            try:
                frames = packet.decode()
            except EndOfFileError:
                return
            except FFmpegError as error:
                self._broken(error)
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self._broken(None)
                else:
                    yield frame

    def _packets(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator["Packet[VideoStream]"]:
        """Yields packets, the empty one at the end too; goes on after unreadable parts."""
        errors = 0
        while not self._is_closed.is_set():
            try:
                for packet in container.demux(stream):
                    if self._is_closed.is_set():
                        return
                    yield packet
                    errors = 0
            except READ_ERRORS as error:
                errors += 1
                self._broken(error)
                if errors < _MAX_ERRORS and isinstance(error, InvalidDataError):
                    continue
                _log.warning(
                    "%s: the rest cannot be read: %s", self.name, reason(error, self._spec)
                )
            return

    def _broken(self, error: BaseException | None) -> None:
        detail = reason(error, self._spec) if error else "decoded with errors"
        self._report(SourceEvent(self.name, Event.FAILED, f"broken frame: {detail}"))
