"""A camera or stream: the newest frame counts, and a source that goes is opened again."""

import logging
import threading
import time
from collections.abc import Iterator

from av.codec.context import Flags
from av.error import FFmpegError
from av.video.frame import VideoFrame

from gradcam_server.watch.frames import Frame
from gradcam_server.watch.sources.backoff import Backoff
from gradcam_server.watch.sources.containers import (
    READ_ERRORS,
    TIMEOUT_S,
    open_video,
    reason,
    video_stream,
)
from gradcam_server.watch.sources.events import Event, Report, SourceEvent, ignore
from gradcam_server.watch.sources.naming import SourceSpec
from gradcam_server.watch.sources.pixels import PixelConverter

_log = logging.getLogger(__name__)

# A connection that was up for as long ends the growth of the pauses.
_STEADY_S = 10.0
# A decoder that is told not to wait may give B frames late; the newest counts, so they are left
# out. A larger step back is a stream that began anew.
_MAX_STEP_BACK_S = 1.0
# Threads that a driver holds for ever; with as many no further one is started.
_MAX_HUNG = 4
# Beyond the time-outs of opening and of reading, for drivers and resolvers that have none.
_GRACE_S = 5.0
# A stream in segments that is so much later than its own clock has stalled, and begins anew.
_MAX_LATE_S = 0.5


class LiveVideo:
    """Reads a camera or stream for ever.

    Each connection has a thread that reads and decodes without waiting for anybody, so that no
    buffer fills, and keeps the newest frame. A driver or resolver that hangs costs that thread,
    not the source.

    Args:
        spec: The camera or stream.
        fps: Maximum number of frames per second; None is all. The others are not converted, and
            not even decoded where each frame stands for itself (MJPEG, raw video).
        report: Receives events of frames that were shed or broken, and of reopening.
        timeout_s: How long a silent source counts as there.
    """

    is_live = True

    def __init__(
        self,
        spec: SourceSpec,
        fps: float | None = None,
        report: Report = ignore,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._spec, self._fps, self._report = spec, fps, report
        self._timeout_s = timeout_s
        self._is_closed = threading.Event()
        self._connection: _Connection | None = None

    @property
    def name(self) -> str:
        """The source's name."""
        return self._spec.name

    def frames(self) -> Iterator[Frame]:
        """Yields the newest frame whenever there is one that was not yielded, until ``close``.

        ``number`` counts all frames that came, over all connections. An outage is logged once,
        with its reason, and once when it is over.
        """
        backoff, base = Backoff(), 0
        outage_began: float | None = None
        hung: list[_Connection] = []
        while not self._is_closed.is_set():
            hung = [connection for connection in hung if connection.is_alive()]
            if len(hung) >= _MAX_HUNG:
                self._is_closed.wait(backoff.pause_s())
                continue
            connection = _Connection(
                self._spec, self._fps, self._report, self._timeout_s, self._is_closed
            )
            self._connection = connection
            connection.start()
            opened_at, converter = 0.0, PixelConverter()
            while (newest := connection.take()) is not None:
                number, read_at, unix_s, decoded = newest
                try:
                    image = converter.upright(decoded)
                except READ_ERRORS as error:
                    detail = f"broken frame: {reason(error, self._spec)}"
                    self._report(SourceEvent(self.name, Event.FAILED, detail))
                    continue
                opened_at = opened_at or read_at
                if outage_began is not None:
                    self._is_back(read_at - outage_began)
                    outage_began = None
                yield Frame(
                    source=self.name,
                    number=base + number,
                    time_s=unix_s,
                    read_at=read_at,
                    image=image,
                    is_live=True,
                )
            base += connection.count
            if self._is_closed.is_set():
                return
            if opened_at and time.monotonic() - opened_at >= _STEADY_S:
                backoff.reset()
            if outage_began is None:
                outage_began = time.monotonic()
                _log.warning(
                    "%s (%s) %s: %s; trying until it is there",
                    self.name,
                    self._spec.shown,
                    "is gone" if base else "cannot be read",
                    connection.why,
                )
            hung.append(connection)
            self._is_closed.wait(backoff.pause_s())

    def done(self, frame: Frame) -> None:
        """Does nothing: no frame of a live source comes again."""

    def close(self) -> None:
        """Ends ``frames()`` at once; a thread that still waits for the network ends by itself."""
        self._is_closed.set()
        if self._connection is not None:
            self._connection.wake()

    def _is_back(self, seconds: float) -> None:
        _log.info("%s is back after %.1f s", self.name, seconds)
        self._report(SourceEvent(self.name, Event.REOPENED, f"after {seconds:.1f} s"))


_Newest = tuple[int, float, float, VideoFrame]


class _Connection(threading.Thread):
    """Reads one opening of a source until it ends, and keeps the newest frame.

    Attributes:
        why: Why it ended.
        count: The number of frames that came.
    """

    def __init__(
        self,
        spec: SourceSpec,
        fps: float | None,
        report: Report,
        timeout_s: float,
        is_closed: threading.Event,
    ) -> None:
        super().__init__(name=f"watch {spec.name}", daemon=True)
        self._spec, self._report, self._timeout_s = spec, report, timeout_s
        self._interval_s = 1 / fps if fps else 0.0
        self._is_closed = is_closed
        self._changed = threading.Condition()
        self._newest: _Newest | None = None
        self._has_ended = False
        self._heard_at = time.monotonic()
        self._due_s, self._last_pts_s = 0.0, float("-inf")
        self._comes_in_segments = False
        self._pts_began_at = float("-inf")
        self.why = "the stream ended"
        self.count = 0

    def take(self) -> _Newest | None:
        """Waits for a frame that was not taken; returns None when the connection has ended."""
        with self._changed:
            while self._newest is None:
                if self._has_ended or self._is_closed.is_set():
                    return None
                silent_s = time.monotonic() - self._heard_at
                if silent_s > 2 * self._timeout_s + _GRACE_S:
                    self.why = f"nothing came for {silent_s:.0f} s"
                    self._has_ended = True  # the thread is left alone, and ends when it can
                    return None
                self._changed.wait(1.0)
            newest, self._newest = self._newest, None
            return newest

    def wake(self) -> None:
        """Makes ``take`` look again."""
        with self._changed:
            self._changed.notify_all()

    def run(self) -> None:
        """Reads until the source ends; never raises."""
        why = self.why
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - whatever it is, the source is opened again
            why = reason(error, self._spec)
        finally:
            with self._changed:
                if not self._has_ended:
                    self.why, self._has_ended = why, True
                self._changed.notify_all()

    def _read(self) -> None:
        with open_video(self._spec, self._timeout_s) as container:
            stream = video_stream(container, self._spec)
            self._comes_in_segments = "hls" in container.format.name.split(",")
            # Threads over frames would hold back as many frames as there are threads.
            stream.thread_type = "SLICE"
            stream.codec_context.flags |= Flags.low_delay
            is_intra_only = stream.codec_context.codec.intra_only
            for packet in container.demux(stream):
                self._heard_at = time.monotonic()
                if self._is_closed.is_set() or self._has_ended:
                    return
                if is_intra_only and packet.size and not self._is_due():
                    self.count += 1
                    continue
                try:
                    frames = packet.decode()
                except FFmpegError as error:
                    if packet.size:
                        self._broken(reason(error, self._spec))
                    continue
                self._accept(frames)

    def _accept(self, frames: list[VideoFrame]) -> None:
        for frame in frames:
            self.count += 1
            pts_s = frame.time
            if frame.is_corrupt:
                self._broken("decoded with errors")
                continue
            if pts_s is not None:
                if 0 < self._last_pts_s - pts_s < _MAX_STEP_BACK_S:
                    continue
                self._last_pts_s = pts_s
                if self._comes_in_segments:
                    self._pace(pts_s)
            if self._is_due():
                self._keep(frame)

    def _pace(self, pts_s: float) -> None:
        """Waits for a frame's turn: a segment comes at once, and holds seconds of video."""
        now = time.monotonic()
        early_s = self._pts_began_at + pts_s - now
        if -_MAX_LATE_S <= early_s <= self._timeout_s:
            self._is_closed.wait(max(early_s, 0))
            self._heard_at = time.monotonic()
        else:
            self._pts_began_at = now - pts_s

    def _keep(self, frame: VideoFrame) -> None:
        now = time.monotonic()
        # The grid goes on from where it is, so that the mean rate is kept; after a gap it is new.
        is_late = now - self._due_s > self._interval_s
        self._due_s = (now if is_late else self._due_s) + self._interval_s
        with self._changed:
            is_shed = self._newest is not None
            self._newest = self.count - 1, now, time.time(), frame
            self._changed.notify_all()
        if is_shed:
            self._report(SourceEvent(self._spec.name, Event.SHED))

    def _is_due(self) -> bool:
        return time.monotonic() >= self._due_s

    def _broken(self, detail: str) -> None:
        self._report(SourceEvent(self._spec.name, Event.FAILED, f"broken frame: {detail}"))
