"""A folder in which files appear: each complete image once, also over restarts."""

import logging
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from watchdog.events import (
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver

from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.decode import decode_image
from gradcam_server.watch.frames import Frame
from gradcam_server.watch.sources.arrivals import Arrivals
from gradcam_server.watch.sources.events import Event, Report, SourceEvent, ignore
from gradcam_server.watch.sources.journal import FileState, Journal, default_journal
from gradcam_server.watch.sources.naming import SourceSpec

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_MAX_BYTES = 256 << 20
# The limit of a server by default; it refuses larger ones.
_MAX_PIXELS = 50_000_000
_MAX_REFUSED = 10_000


class FolderSource:
    """Reads the images of a folder, those that are there in the order of their names.

    A file counts as done when ``done`` was called with its frame, or when it turned out not to be
    an image. So a process that is killed reads those again that were not done: none is lost, and
    of those that were done none comes twice. The same name with another size or time is a new
    file.

    Args:
        spec: The folder. Subfolders are not searched.
        report: Receives an event for each file that is no image or cannot be read.
        journal: The file that says what is done; by default one below ~/.local/state, for this
            folder.
        uses_inotify: False scans only.

    Raises:
        SourceError: The journal cannot be used.
    """

    is_live = False

    def __init__(
        self,
        spec: SourceSpec,
        report: Report = ignore,
        journal: Path | None = None,
        *,
        uses_inotify: bool = True,
    ) -> None:
        self._spec, self._report = spec, report
        self._folder = Path(spec.location).absolute()
        self._journal = Journal(journal or default_journal(self._folder))
        self._arrivals = Arrivals(self._folder, self._is_wanted)
        self._uses_inotify = uses_inotify
        self._lock = threading.Lock()
        self._in_work: dict[int, tuple[str, FileState]] = {}
        self._refused: dict[str, FileState] = {}
        self._is_closed = self._is_reading = self._has_warned = False

    @property
    def name(self) -> str:
        """The source's name."""
        return self._spec.name

    def frames(self) -> Iterator[Frame]:
        """Yields complete images with their bytes, until ``close``."""
        with self._lock:
            if self._is_closed:
                return
            self._is_reading = True
        watch = _Watch(self._spec, self._folder, self._arrivals, self._report, self._uses_inotify)
        number = 0
        try:
            self._journal.forget_old(lambda name: (self._folder / name).exists())
            synced_at = time.monotonic()
            while not self._is_closed:
                watch.check()
                name = self._arrivals.next_name(_TICK_S)
                if name is not None and (frame := self._read(name, number)) is not None:
                    number += 1
                    yield frame
                if time.monotonic() - synced_at >= 1:
                    self._journal.sync()
                    synced_at = time.monotonic()
        finally:
            watch.stop()
            self._is_reading = False
            self._close_journal()

    def done(self, frame: Frame) -> None:
        """Says that the result of a frame is written, so that its file is not read again."""
        with self._lock:
            file = self._in_work.pop(frame.number, None)
        if file is not None:
            self._note(*file)
        if self._is_closed:
            self._close_journal()

    def close(self) -> None:
        """Ends ``frames()`` at once. ``done`` may still be called for the frames in work."""
        self._is_closed = True
        self._arrivals.close()
        self._close_journal()

    def _close_journal(self) -> None:
        """Closes the journal if nobody needs it any more."""
        with self._lock:
            if self._is_closed and not self._in_work and not self._is_reading:
                self._journal.close()

    def _is_wanted(self, name: str, state: FileState) -> bool:
        """Returns whether a file is new; an empty file is one that is about to be written."""
        with self._lock:
            is_known = self._refused.get(name) == state or (name, state) in self._in_work.values()
        return state.size > 0 and not is_known and not self._journal.has(name, state)

    def _read(self, name: str, number: int) -> Frame | None:
        path = self._folder / name
        read_at = time.monotonic()
        try:
            found = _read_file(path)
            if found is None:
                return None
            data, state = found
            if not self._is_wanted(name, state):
                return None
            image = decode_image(data, _MAX_PIXELS)
        except FileNotFoundError:
            return None  # it was taken away again
        except OSError as error:
            with suppress(OSError):
                self._refuse(name, _state_of(path.stat()))
            self._failed(path, error.strerror or str(error))
            return None
        except InvalidRequestError as error:
            # It is never an image, so it is done.
            self._note(name, state)
            self._failed(path, str(error))
            return None
        with self._lock:
            self._in_work[number] = name, state
        return Frame(
            source=self.name,
            number=number,
            time_s=time.time(),
            read_at=read_at,
            image=image,
            is_live=False,
            path=path,
            encoded=data,
        )

    def _note(self, name: str, state: FileState) -> None:
        """Writes to the journal that a file is done; a full disk does not end the run."""
        try:
            self._journal.add(name, state)
        except sqlite3.Error as error:
            self._refuse(name, state)
            if not self._has_warned:
                _log.warning(
                    "%s: the journal cannot be written (%s): after a restart files come again",
                    self.name,
                    error,
                )
            self._has_warned = True

    def _refuse(self, name: str, state: FileState) -> None:
        """Leaves a file out until it changes or the process starts again."""
        with self._lock:
            if len(self._refused) >= _MAX_REFUSED:
                del self._refused[next(iter(self._refused))]
            self._refused[name] = state

    def _failed(self, path: Path, why: str) -> None:
        _log.warning("%s: %s: %s", self.name, path.name, why)
        self._report(SourceEvent(self.name, Event.FAILED, why, path))


def _state_of(found: os.stat_result) -> FileState:
    return FileState(found.st_size, found.st_mtime_ns)


def _read_file(path: Path) -> tuple[bytes, FileState] | None:
    """Returns a file's bytes and state; None if it is no file, is empty, or changes meanwhile.

    Of a file over the limit only the beginning is read, which is no whole image.
    """
    # Not to wait for a pipe of that name.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            return None
        data = file.read(_MAX_BYTES)
        after = os.fstat(descriptor)
    if not data or _state_of(before) != _state_of(after):
        return None
    return data, _state_of(after)


class _Watch:
    """Keeps inotify on a folder that may be deleted and made again."""

    def __init__(
        self,
        spec: SourceSpec,
        folder: Path,
        arrivals: Arrivals,
        report: Report,
        uses_inotify: bool,
    ) -> None:
        self._spec, self._folder, self._report = spec, folder, report
        self._arrivals, self._uses_inotify = arrivals, uses_inotify
        self._observer: BaseObserver | None = None
        self._identity: tuple[int, int] | None = None
        self._is_gone = False

    def check(self) -> None:
        """Begins to watch the folder that is there now, if it is another than before."""
        try:
            found = self._folder.stat()
            identity = found.st_dev, found.st_ino
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        if not os.access(self._folder, os.R_OK | os.X_OK):
            self._lost("it may not be read")
            return
        if identity == self._identity and self._is_alive():
            return
        self.stop()
        self._identity = identity
        if self._uses_inotify:
            self._start()
        self._arrivals.scan_now()
        if self._is_gone:
            self._is_gone = False
            _log.info("%s: the folder is back", self._spec.name)
            self._report(SourceEvent(self._spec.name, Event.REOPENED, "the folder is back"))

    def _is_alive(self) -> bool:
        """Returns whether inotify still watches: it ends with a folder whose number lives on."""
        return self._observer is None or all(
            emitter.is_alive() for emitter in self._observer.emitters
        )

    def stop(self) -> None:
        """Ends inotify."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        self._observer, self._identity = None, None

    def _lost(self, why: str) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        self.stop()
        _log.warning(
            "%s: the folder %s is gone: %s; waiting for it",
            self._spec.name,
            self._folder,
            why,
        )

    def _start(self) -> None:
        try:
            # Only on Linux; elsewhere scans do it all.
            from watchdog.observers.inotify import InotifyObserver

            # Full events tell a file that was renamed into the folder from one that was opened.
            observer = InotifyObserver(generate_full_events=True)
        except (ImportError, OSError) as error:
            self._no_inotify(error)
            return
        try:
            observer.schedule(
                _Handler(self._arrivals),
                str(self._folder),
                event_filter=[
                    FileClosedEvent,
                    FileCreatedEvent,
                    FileDeletedEvent,
                    FileModifiedEvent,
                    FileMovedEvent,
                ],
            )
            observer.start()
        except OSError as error:
            self._no_inotify(error)
            return
        self._observer = observer

    def _no_inotify(self, error: Exception) -> None:
        self._uses_inotify = False
        _log.warning(
            "%s: inotify cannot be used (%s): the folder is scanned every second",
            self._spec.name,
            error,
        )


class _Handler(FileSystemEventHandler):
    """Passes the events of inotify on."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def dispatch(self, event: FileSystemEvent) -> None:
        """Called by watchdog's thread with each event."""
        if event.is_directory:
            return
        name = Path(os.fsdecode(event.src_path)).name
        if isinstance(event, FileClosedEvent):
            self._arrivals.completed(name)
        elif isinstance(event, FileCreatedEvent | FileModifiedEvent):
            self._arrivals.written(name)
        elif isinstance(event, FileDeletedEvent):
            self._arrivals.removed(name)
        elif isinstance(event, FileMovedEvent):
            # Either end is empty if it is outside the folder.
            if name:
                self._arrivals.removed(name)
            if event.dest_path:
                self._arrivals.completed(Path(os.fsdecode(event.dest_path)).name)
