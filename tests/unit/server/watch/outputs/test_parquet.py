"""Parquet shards of frames."""

import errno
import os
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from gradcam_server.batch.errors import OutputError
from gradcam_server.batch.results import to_pandas
from gradcam_server.batch.schema import SCHEMA
from gradcam_server.watch.frames import Status
from gradcam_server.watch.outputs.parquet import ParquetShards
from support.watch_results import (
    DOG,
    RAW,
    answer,
    explained,
    explanation,
    failed,
    file_frame,
    frame,
)


def shards(folder: Path) -> list[Path]:
    """Returns the shards, in the order of their names."""
    return sorted(folder.glob("*.parquet"))


def test_duckdb_reads_the_rows(tmp_path: Path) -> None:
    """A tool that is not ours finds frames, files and errors by the columns of gradcam batch."""
    output = ParquetShards(tmp_path)
    output.write(explained(frame(number=7)))
    output.write(explained(frame(number=9), status=Status.REUSED))
    output.write(failed(file_frame(Path("/in/a.jpg"), 3)))
    output.close()
    rows = duckdb.sql(
        "select index, id, path, status, error, class_name[1], target, width, method "
        f"from '{tmp_path}/*.parquet' order by index"
    ).fetchall()
    nothing = (None,) * 4
    assert rows == [
        (3, "inbox/3", "/in/a.jpg", "error", "the server drains", *nothing),
        (7, "clip/7", "clip", "ok", None, "tabby", 281, 160, "gradcam"),
        (9, "clip/9", "clip", "reused", None, "tabby", 281, 160, "gradcam"),
    ]


def test_the_columns_are_those_of_batch(tmp_path: Path) -> None:
    """One reader serves both, maps included; the target's explanation is the row's."""
    both = answer(explanations=[explanation(DOG, raw=RAW + 1), explanation()])
    output = ParquetShards(tmp_path)
    output.write(explained(explanation=both, target="281 tabby"))
    output.write(explained(frame(number=1), status=Status.REUSED))
    output.write(failed(frame(number=2)))
    output.close()
    assert pq.read_schema(shards(tmp_path)[0]).remove_metadata() == SCHEMA
    table = to_pandas(tmp_path, maps=True)
    assert list(table["target_name"].fillna("")) == ["tabby", "tabby", ""]
    np.testing.assert_array_equal(table["map"][0], RAW)
    np.testing.assert_array_equal(table["map"][1], RAW)
    assert table["map"][2] is None


def test_shards_are_rotated_by_rows(tmp_path: Path) -> None:
    """Full shards are readable before the end, and none is written empty."""
    output = ParquetShards(tmp_path, max_rows=3)
    for number in range(7):
        output.write(explained(frame(number=number)))
    assert [pq.read_metadata(path).num_rows for path in shards(tmp_path)] == [3, 3]
    output.close()
    output.close()
    assert [pq.read_metadata(path).num_rows for path in shards(tmp_path)] == [3, 3, 1]
    assert list(to_pandas(tmp_path)["index"]) == list(range(7))
    assert not list(tmp_path.glob(".*.tmp"))


def test_shards_are_rotated_by_time(tmp_path: Path) -> None:
    """A row is written when it is old enough, though no frame follows; the next has a new shard."""
    output = ParquetShards(tmp_path, max_age_s=0.05)
    for count in (1, 2):
        output.write(explained(frame(number=count)))
        deadline = time.monotonic() + 60
        while len(shards(tmp_path)) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    output.close()
    assert list(to_pandas(tmp_path)["index"]) == [1, 2]


def test_runs_share_a_folder(tmp_path: Path) -> None:
    """A restart, or a second watcher, overwrites nothing."""
    outputs = [ParquetShards(tmp_path), ParquetShards(tmp_path)]
    for number, output in enumerate(outputs):
        output.write(explained(frame(number=number)))
    for output in outputs:
        output.close()
    assert sorted(to_pandas(tmp_path)["index"]) == [0, 1]


def test_a_shard_says_its_time(tmp_path: Path) -> None:
    """So that old shards are found and removed without reading them."""
    output = ParquetShards(tmp_path)
    for number in (50, 25, 100):
        output.write(explained(frame(number=number)))
    output.close()
    notes = pq.read_metadata(shards(tmp_path)[0]).metadata
    assert notes[b"gradcam.first_time_s"] == b"1.0"
    assert notes[b"gradcam.last_time_s"] == b"4.0"


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """Who takes the shards away may take the folder with them."""
    folder = tmp_path / "frames"
    output = ParquetShards(folder)
    folder.rmdir()
    output.write(explained())
    output.close()
    assert len(shards(folder)) == 1


def test_a_job_of_batch_is_left_alone(tmp_path: Path) -> None:
    """Its rows and those of frames do not mix."""
    (tmp_path / "_manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="holds a job of gradcam batch; name another folder"):
        ParquetShards(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """It is said before the first frame."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="must be a folder"):
        ParquetShards(tmp_path / "file")


@pytest.mark.parametrize("max_age_s", [0.01, 60])
def test_a_shard_that_cannot_be_written_is_an_error(tmp_path: Path, max_age_s: float) -> None:
    """Of the writer's thread or of the timer's: the next call raises it."""
    folder = tmp_path / "frames"
    output = ParquetShards(folder, max_age_s=max_age_s)
    folder.rmdir()
    folder.touch()
    output.write(explained())
    if max_age_s < 1:
        timer = output._timer
        assert timer is not None
        timer.join()
    with pytest.raises(OutputError, match="it cannot be written"):
        output.close()


def test_rows_that_could_not_be_written_are_tried_again_at_the_end(tmp_path: Path) -> None:
    """There may be room by then: an error of the timer costs no row, and is no error of the end."""
    folder = tmp_path / "frames"
    output = ParquetShards(folder, max_age_s=0.01)
    folder.rmdir()
    folder.touch()
    output.write(explained())
    timer = output._timer
    assert timer is not None
    timer.join()
    folder.unlink()
    output.close()
    assert len(to_pandas(folder)) == 1


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no room to write"),
        (errno.EROFS, "cannot be written"),
        (errno.EIO, "cannot be written .*Input/output error"),
    ],
    ids=["full", "read-only", "broken"],
)
def test_each_error_of_a_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    """As an error for people, which ends the command without a traceback."""
    output = ParquetShards(tmp_path)
    output.write(explained())

    def broken(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OutputError, match=message):
        output.close()
    assert not list(tmp_path.iterdir())
