"""Writes Parquet shards with the columns of ``gradcam batch``.

A shard appears whole when it has enough rows, or when its first row is old enough: kill -9 loses no
more than the rows of one shard. Each run has shards of its own, so that a folder may be written by
several runs, one after the other or at the same time.
"""

import dataclasses
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

from gradcam_server.batch import manifest
from gradcam_server.batch.errors import OutputError
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.schema import REUSED, Row, error_row, row_of
from gradcam_server.batch.shards import RowFile, writing
from gradcam_server.batch.sources.base import Item, printable
from gradcam_server.watch.frames import Frame, FrameResult, Status
from gradcam_server.watch.outputs.explained import explanation_of

_MAX_ROWS = 5000
_MAX_AGE_S = 60.0
_RUN, _FIRST_TIME, _LAST_TIME = b"gradcam.run", b"gradcam.first_time_s", b"gradcam.last_time_s"


class ParquetShards:
    """A folder of shards.

    The rows are those of ``gradcam batch``: ``index`` is the number of the frame in its source,
    ``id`` the source and the number, ``path`` the file of a folder, else the source. ``status`` is
    "ok" of a frame that was computed, "reused" of one with an earlier answer, or "error".

    Args:
        folder: The folder; it is made if there is none.
        heatmap: The type in which maps are stored: one of ``HEATMAP_TYPES``.
        max_rows: The rows of a full shard.
        max_age_s: Seconds from the first row of a shard until it is written, full or not.

    Attributes:
        at_risk: What may be incomplete if the process ends at once.

    Raises:
        OutputError: The folder holds a job of ``gradcam batch``, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        heatmap: str = "float16",
        max_rows: int = _MAX_ROWS,
        max_age_s: float = _MAX_AGE_S,
    ) -> None:
        self._folder, self._max_rows, self._max_age_s = folder, max_rows, max_age_s
        self.at_risk = f"--parquet {folder} (the rows since its last shard)"
        self._options = ExplainOptions(heatmap=heatmap)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._run = f"{started}-{uuid.uuid4().hex[:8]}"
        self._shard_count = 0
        self._rows: list[Row] = []
        self._times: list[float] = []
        self._timer: threading.Timer | None = None
        self._error: Exception | None = None
        self._lock = threading.Lock()
        if (folder / manifest.NAME).exists():
            raise OutputError(
                f"{folder}: it holds a job of gradcam batch; name another folder for the frames"
            )
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # That it cannot be written is said now, not after the first shard.
            probe = folder / f".{self._run}.tmp"
            probe.touch()
            probe.unlink()

    def write(self, result: FrameResult) -> None:
        """Adds a row.

        Raises:
            OutputError: The shard that it fills, or an earlier one, cannot be written.
        """
        row = self._row_of(result)
        with self._lock:
            self._raise_error()
            self._rows.append(row)
            self._times.append(result.frame.time_s)
            if len(self._rows) >= self._max_rows:
                self._write_shard()
            elif self._timer is None:
                self._timer = threading.Timer(self._max_age_s, self._on_age)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Writes the last shard, with the rows of one that could not be written before.

        Raises:
            OutputError: It cannot be written.
        """
        with self._lock:
            self._error = None  # its rows are still there, and there may be room now
            self._write_shard()

    def _row_of(self, result: FrameResult) -> Row:
        item = _item_of(result.frame)
        explanation = explanation_of(result)
        if result.explanation is None or explanation is None:
            return error_row(item, result.error or "no class was explained")
        raw = tuple(heatmap for heatmap in explanation.heatmaps if heatmap.format == "raw")
        chosen = dataclasses.replace(explanation, heatmaps=raw)
        answer = dataclasses.replace(result.explanation, explanations=(chosen,))
        row = row_of(item, answer, self._options)
        if result.status is Status.REUSED:
            row.status = REUSED
        return row

    def _on_age(self) -> None:
        """Writes the shard in the timer's thread; the next call raises its error."""
        with self._lock:
            if self._timer is not threading.current_thread():
                return  # it was full meanwhile
            try:
                self._write_shard()
            except Exception as error:  # noqa: BLE001 - see above
                self._error = error

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write_shard(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._rows:
            return
        name = f"part-{self._run}-{self._shard_count:05d}"
        temporary, path = self._folder / f".{name}.tmp", self._folder / f"{name}.parquet"
        notes = {
            _RUN: self._run,
            _FIRST_TIME: str(min(self._times)),
            _LAST_TIME: str(max(self._times)),
        }
        try:
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)  # it may have been moved away
                with RowFile(temporary, path) as rows:
                    for row in self._rows:
                        rows.add(row)
                    rows.finish(notes)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"{self._folder}: it cannot be written ({reason})") from error
        self._shard_count += 1
        self._rows.clear()
        self._times.clear()


def _item_of(frame: Frame) -> Item:
    path = frame.source if frame.path is None else printable(str(frame.path))
    return Item(frame.number, f"{frame.source}/{frame.number}", path, bytes)
