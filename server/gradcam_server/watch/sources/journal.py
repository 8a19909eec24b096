"""Which files of a folder are done, over restarts."""

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gradcam_server.watch.sources.errors import SourceError

_KEEP_S = 30 * 86400.0


class FileState(NamedTuple):
    """A file as it was found: another size or time means other content."""

    size: int
    mtime_ns: int


class Journal:
    """A SQLite file with name, size and time of each file that is done.

    ``add`` is durable at once against the end of the process, and ``sync`` makes it so against
    the end of the machine. The names are on disk, not in memory.

    Args:
        path: The SQLite file, which is made; folders are made too.

    Raises:
        SourceError: It cannot be written, is no journal, or another process uses it.
    """

    def __init__(self, path: Path) -> None:
        self._lock, self._is_dirty = threading.Lock(), False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise SourceError(f"the journal {path} cannot be opened: {error}") from None
        try:
            # One process owns it: then the log in memory needs no shared memory, and any file
            # system will do.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute("BEGIN EXCLUSIVE")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS done (name TEXT PRIMARY KEY, size INTEGER NOT NULL, "
                "mtime_ns INTEGER NOT NULL, done_at REAL NOT NULL) WITHOUT ROWID"
            )
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._database.close()
            raise SourceError(_explain(path, error)) from None

    def has(self, name: str, state: FileState) -> bool:
        """Returns whether the file is done in this state."""
        with self._lock:
            row = self._database.execute(
                "SELECT size, mtime_ns FROM done WHERE name = ?", (_text(name),)
            ).fetchone()
        return row is not None and FileState(*row) == state

    def add(self, name: str, state: FileState) -> None:
        """Remembers that the file is done in this state."""
        with self._lock:
            self._database.execute(
                "INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?)",
                (_text(name), *state, time.time()),
            )
            self._is_dirty = True

    def sync(self) -> None:
        """Writes all that was added to the disk."""
        with self._lock:
            if self._is_dirty:
                self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                self._is_dirty = False

    def forget_old(self, is_there: Callable[[str], bool]) -> None:
        """Forgets files that were done 30 days ago and are gone.

        Newer ones are kept: a folder on a network is sometimes empty for a while.
        """
        with self._lock:
            rows = self._database.execute(
                "SELECT name FROM done WHERE done_at < ?", (time.time() - _KEEP_S,)
            )
            gone = [row for row in rows if not is_there(os.fsdecode(row[0].encode("latin-1")))]
            self._database.executemany("DELETE FROM done WHERE name = ?", gone)

    def close(self) -> None:
        """Closes the file, so that another process can use it."""
        with self._lock:
            self._database.close()


def default_journal(folder: Path) -> Path:
    """Returns the path of a folder's journal: below $XDG_STATE_HOME, else ~/.local/state."""
    real = folder.resolve()
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:12]
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "gradcam" / "watch" / f"{real.name or 'root'}-{digest}.sqlite"


def _text(name: str) -> str:
    """Returns a file's name as text that SQLite stores: names may be no UTF-8."""
    return os.fsencode(name).decode("latin-1")


def _explain(path: Path, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return (
            f"another gradcam watch uses the journal {path}: end it, or give this one a journal of "
            "its own"
        )
    return f"the journal {path} cannot be used ({error}): remove it, or name another"
