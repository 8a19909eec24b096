"""Finds the complete files of a folder, in the order in which they become complete.

A file is complete when it was renamed into the folder, or closed after writing; inotify says so at
once. Scans of the folder find what inotify did not tell: files from before the start, files that
another machine wrote to a network file system, and events that were lost. A file that a scan finds
is complete if no process has it open for writing, or, where that cannot be known, if its size and
time have not changed for two seconds.
"""

import heapq
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from gradcam_server.images.file_names import is_hidden
from gradcam_server.watch.sources.journal import FileState
from gradcam_server.watch.sources.writers import has_writer

UNCHANGED_S = 2.0
# A file of which inotify said that it is being written, but not that it was closed: a hard link,
# or an event that was lost. Longer than writers pause.
_SILENT_WRITER_S = 60.0
_SCAN_S = 1.0
# Scans of large folders take at most this share of a core.
_SCAN_SHARE = 0.02
_TEMPORARY = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".filepart", ".swp", "~")


def is_temporary(name: str) -> bool:
    """Returns whether a name is that of a hidden file, or of one that is not finished."""
    return is_hidden(name) or name.lower().endswith(_TEMPORARY)


class Arrivals:
    """A queue of names of complete files, fed by events and by scans.

    Args:
        folder: The folder; subfolders are not searched.
        is_wanted: Whether a file in this state is still to be read. Called in the thread of
            ``next_name``.
        max_names: Limit of names in memory. The rest stays in the folder, and a later scan finds
            it.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        is_wanted: Callable[[str, FileState], bool],
        max_names: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._is_wanted = folder, is_wanted
        self._max_names, self._clock = max_names, clock
        self._changed = threading.Condition()
        # Dictionaries are used as ordered sets.
        self._queue: dict[str, None] = {}
        self._written_at: dict[str, float] = {}
        self._unchanged: dict[str, tuple[FileState, float]] = {}
        self._next_scan_at = float("-inf")
        self._is_closed = False

    def written(self, name: str) -> None:
        """Notes that a file is being written."""
        with self._changed:
            if not is_temporary(name) and len(self._written_at) < self._max_names:
                self._written_at[name] = self._clock()

    def completed(self, name: str) -> None:
        """Queues a file that is complete."""
        with self._changed:
            self._written_at.pop(name, None)
            if not is_temporary(name) and len(self._queue) < self._max_names:
                self._queue[name] = None
                self._changed.notify_all()

    def removed(self, name: str) -> None:
        """Forgets a file that is gone."""
        with self._changed:
            self._written_at.pop(name, None)
            self._queue.pop(name, None)

    def close(self) -> None:
        """Makes ``next_name`` return None at once."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def next_name(self, timeout_s: float) -> str | None:
        """Removes and returns the next name; None if none came in time, or after ``close``."""
        self._scan_if_due()
        with self._changed:
            if not self._queue and not self._is_closed:
                self._changed.wait(timeout_s)
            if self._is_closed or not self._queue:
                return None
            name = next(iter(self._queue))
            del self._queue[name]
            return name

    def scan_now(self) -> None:
        """Makes the next ``next_name`` scan, as after the folder was made again."""
        self._next_scan_at = float("-inf")

    def _scan_if_due(self) -> None:
        began = self._clock()
        if began < self._next_scan_at:
            return
        with self._changed:
            room = self._max_names - len(self._queue)
        names = heapq.nsmallest(room, self._complete(began)) if room else []
        with self._changed:
            self._queue.update(dict.fromkeys(names))
        now = self._clock()
        self._next_scan_at = now + max(_SCAN_S, (now - began) / _SCAN_SHARE)

    def _complete(self, now: float) -> Iterator[str]:
        """Yields the names of complete files that a scan finds, in any order."""
        earlier, self._unchanged = self._unchanged, {}
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if is_temporary(entry.name) or entry.name in self._queue:
                    continue
                with suppress(OSError):  # gone, or not to be read: its reader says so
                    found = entry.stat()
                    state = FileState(found.st_size, found.st_mtime_ns)
                    if (
                        stat.S_ISREG(found.st_mode)
                        and self._is_wanted(entry.name, state)
                        and self._is_complete(entry.name, state, earlier, now)
                    ):
                        yield entry.name

    def _is_complete(
        self, name: str, state: FileState, earlier: dict[str, tuple[FileState, float]], now: float
    ) -> bool:
        try:
            is_open = has_writer(self._folder / name)
        except PermissionError:
            is_open = None
        if is_open is not None:
            return not is_open
        if now - self._written_at.get(name, float("-inf")) < _SILENT_WRITER_S:
            return False
        before, since = earlier.get(name, (state, now))
        if before != state:
            since = now
        if len(self._unchanged) < self._max_names:
            self._unchanged[name] = state, since
        return now - since >= UNCHANGED_S
