"""Jobs explain every input once, whatever interrupts them."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradcam_server.batch.errors import InputError, OutputError, TooManyErrorsError
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.job import Job, run
from gradcam_server.batch.plan import Share
from gradcam_server.batch.shards import Folder, writing
from support.made_rows import Died, MadeStage, Numbers, Quiet

LANGUAGES = ("python", "sql")


def job(output: Path, count: int = 25, **options: Any) -> Job:
    return replace(Job(Numbers(count), "numbers", output, shard_size=10), **options)


def opens(stage: MadeStage) -> Callable[[], MadeStage]:
    return lambda: stage


def indices(output: Path) -> list[int]:
    return sorted(pd.read_parquet(output)["index"])


def names(output: Path) -> set[str]:
    return {path.name for path in output.iterdir()}


def test_a_job_writes_a_row_for_each_image_and_a_manifest(tmp_path: Path) -> None:
    """Names are fixed, all columns exist, and the manifest counts the rows."""
    report = Quiet()
    summary = run(job(tmp_path), lambda: MadeStage(frozenset({3})), report)
    assert (summary.images, summary.done, summary.errors, summary.parts) == (25, 25, 1, 3)
    assert report.begun == (25, 0, 0)
    assert report.count == 25
    assert names(tmp_path) == {
        *(f"part-{number:05d}-of-00003.parquet" for number in range(3)),
        *("_manifest.json", ".lock"),
    }
    table = pd.read_parquet(tmp_path)
    assert list(table["index"]) == list(range(25))
    assert table["status"].value_counts().to_dict() == {"ok": 24, "error": 1}
    manifest = json.loads((tmp_path / "_manifest.json").read_text())
    assert manifest["inputs"]["count"] == 25
    counts = manifest["counts"]
    assert (counts["images"], counts["ok"], counts["errors"]) == (25, 24, 1)
    assert (counts["parts"], counts["finished_parts"]) == (3, 3)
    (only,) = manifest["runs"].values()
    assert only["outcome"] == "finished"
    assert "pyarrow" in only["versions"]
    assert manifest["seconds"] > 0


def test_duckdb_reads_it(tmp_path: Path) -> None:
    """DuckDB reads all shards by a pattern, lists and bytes included."""
    run(job(tmp_path), MadeStage, Quiet())
    columns = "count(*), sum(class_index[1]), min(octet_length(heatmap))"
    query = f"SELECT {columns} FROM '{tmp_path}/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(25, 7 * 25, 8)]


def test_the_documentations_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pandas and DuckDB examples of docs/batch.md work."""
    page = (Path(__file__).parents[4] / "docs" / "batch.md").read_text("utf-8")
    python, sql = (re.findall(rf"```{name}\n(.*?)```", page, re.DOTALL)[0] for name in LANGUAGES)
    run(job(tmp_path / "out"), lambda: MadeStage(frozenset({0})), Quiet())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python, names)
    assert names["unsure"]["map"].iloc[0].tolist() == [[0, 1], [2, 3]]
    assert len(names["unsure"]) == 10
    assert duckdb.sql(sql).fetchall() == [("seven", 24, 0.75)]


def test_a_finished_job_opens_no_engine(tmp_path: Path) -> None:
    """The same command again loads no model."""
    run(job(tmp_path), MadeStage, Quiet())
    stage, report = MadeStage(), Quiet()
    summary = run(job(tmp_path), lambda: stage, report)
    assert (summary.done, stage.opened, report.begun) == (0, 0, (25, 25, 0))


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 40),
    shard_size=st.integers(1, 15),
    deaths=st.lists(st.integers(0, 39), max_size=4),
    shares=st.integers(1, 4),
    data=st.data(),
)
def test_whatever_dies_the_same_command_finishes(
    count: int, shard_size: int, deaths: list[int], shares: int, data: st.DataObject
) -> None:
    """Every input occurs once, and no finished shard is written again."""
    with TemporaryDirectory() as folder:
        made: list[int] = []
        all_shares = [Share(number, shares) for number in range(shares)]
        for death in [*deaths, None]:
            for share in data.draw(st.permutations(all_shares)):
                there = (
                    set(indices(Path(folder))) if list(Path(folder).glob("*.parquet")) else set()
                )
                stage = MadeStage(dies_at=death)
                what = job(Path(folder), count, shard_size=shard_size, share=share)
                with suppress(Died):
                    run(what, opens(stage), Quiet())
                assert not there & set(stage.made)
                made += stage.made
        assert indices(Path(folder)) == list(range(count))
        assert set(made) == set(range(count))
        assert not list(Path(folder).glob(".*.tmp"))


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    """Temporary files of a killed writer are not read, and do not fill the disk."""
    with pytest.raises(Died):
        run(job(tmp_path), lambda: MadeStage(dies_at=15), Quiet())
    (tmp_path / ".part-00002-of-00003.tmp").write_bytes(b"half")
    assert indices(tmp_path) == list(range(10))
    run(job(tmp_path), MadeStage, Quiet())
    assert indices(tmp_path) == list(range(25))
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"options": ExplainOptions(method="layercam")},
            'method was "gradcam" and is now "layercam"',
        ),
        ({"options": ExplainOptions(top_k=3)}, "top_k was 5 and is now 3"),
        ({"shard_size": 7}, "shard_size was 10 and is now 7"),
        ({"model": {"weights": "random"}}, 'weights was null and is now "random"'),
        ({"source": Numbers(25, "other")}, "over other inputs"),
        ({"limit": 20}, "limit was null and is now 20"),
    ],
)
def test_another_job_in_the_same_folder_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    """The error says what differs, and the folder is unchanged."""
    run(job(tmp_path), MadeStage, Quiet())
    before = names(tmp_path)
    with pytest.raises(OutputError, match=message):
        run(job(tmp_path, **changed), MadeStage, Quiet())
    assert names(tmp_path) == before


def test_a_first_attempt_that_made_nothing_binds_nothing(tmp_path: Path) -> None:
    """After a wrong option, the same folder is used with the right one."""
    with pytest.raises(Died):
        run(
            job(tmp_path, options=ExplainOptions(layer="typo")),
            lambda: MadeStage(dies_at=0),
            Quiet(),
        )
    run(job(tmp_path), MadeStage, Quiet())
    assert indices(tmp_path) == list(range(25))


def test_a_folder_with_other_parquet_files_is_refused(tmp_path: Path) -> None:
    """Readers would take both kinds of files for one table."""
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "theirs.parquet")
    with pytest.raises(OutputError, match="no _manifest"):
        run(job(tmp_path), MadeStage, Quiet())


def test_a_shard_that_is_not_this_jobs_is_not_taken_for_finished(tmp_path: Path) -> None:
    """A shard copied from another folder is refused."""
    run(job(tmp_path / "a"), MadeStage, Quiet())
    run(job(tmp_path / "b", limit=20), MadeStage, Quiet())
    name = "part-00000-of-00003.parquet"
    (tmp_path / "a" / name).write_bytes(
        (tmp_path / "b" / "part-00000-of-00002.parquet").read_bytes()
    )
    with pytest.raises(OutputError, match="another job wrote it"):
        run(job(tmp_path / "a"), MadeStage, Quiet())


def test_more_errors_than_allowed_end_the_job(tmp_path: Path) -> None:
    """The error shows the first failures; errors of earlier runs count; a higher limit goes on."""
    failing = frozenset({1, 12, 13})
    with pytest.raises(TooManyErrorsError, match=r"more than 1 .*/1: bad; /12: bad"):
        run(job(tmp_path, errors_max=1), lambda: MadeStage(failing), Quiet())
    assert indices(tmp_path) == list(range(10))
    with pytest.raises(TooManyErrorsError):
        run(job(tmp_path, errors_max=1), lambda: MadeStage(failing), Quiet())
    assert run(job(tmp_path, errors_max=3), lambda: MadeStage(failing), Quiet()).errors == 3


def test_shares_beyond_the_parts_have_nothing_to_do(tmp_path: Path) -> None:
    """More processes than shards are not an error."""
    shares = [Share(number, 5) for number in range(5)]
    assert sum(run(job(tmp_path, share=one), MadeStage, Quiet()).done for one in shares) == 25
    assert indices(tmp_path) == list(range(25))


def test_a_limit_of_nothing_is_told(tmp_path: Path) -> None:
    """A job without images is refused."""
    with pytest.raises(InputError, match="nothing to do"):
        run(job(tmp_path, count=0), MadeStage, Quiet())


def test_overlays_lie_beside_the_shards(tmp_path: Path) -> None:
    """Readers of Parquet ignore their folder, and no input decides their names."""

    class Stage(MadeStage):
        def rows(self, source, ranges):  # type: ignore[no-untyped-def]
            for row in super().rows(source, ranges):
                row.overlay_jpeg = b"jpeg %d" % row.index
                yield row

    run(job(tmp_path), Stage, Quiet())
    table = pd.read_parquet(tmp_path)
    assert table["overlay"][12] == "_overlays/part-00001-of-00003/000000012.jpg"
    assert (tmp_path / table["overlay"][12]).read_bytes() == b"jpeg 12"


def run_elsewhere(program: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,  # type: ignore[call-overload]
    )


HOLDER = """
    import sys
    from pathlib import Path
    from gradcam_server.batch.shards import Folder
    folder = Folder(Path(sys.argv[1]))
    folder.lock_parts(int(sys.argv[2]), int(sys.argv[3]))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_never_write_the_same_parts(tmp_path: Path) -> None:
    """Overlapping shares are refused, others are not, and a lock ends with its process."""
    with run_elsewhere(HOLDER, tmp_path, 0, 2) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another job is writing these parts"):
            run(job(tmp_path), MadeStage, Quiet())
        third = job(tmp_path, share=Share(2, 3))
        assert run(third, MadeStage, Quiet()).done == 5
        holder.kill()
    run(job(tmp_path), MadeStage, Quiet())
    assert indices(tmp_path) == list(range(25))


def test_a_full_disk_leaves_no_half_written_shard(tmp_path: Path) -> None:
    """The error names the cause, and once there is room the same command goes on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    run(job(tmp_path, limit=None, share=Share(0, 3)), MadeStage, Quiet())
    largest = max(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, before[1]))
    try:
        with pytest.raises(OutputError, match="no room to write"):
            run(job(tmp_path), MadeStage, Quiet())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert indices(tmp_path) == list(range(10))
    assert not list(tmp_path.glob(".*.tmp"))
    run(job(tmp_path), MadeStage, Quiet())
    assert indices(tmp_path) == list(range(25))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_named(tmp_path: Path, number: int) -> None:
    """As a network disk whose server is gone; the job goes on once it works."""
    with pytest.raises(OutputError, match="the disk or its connection failed"), writing(tmp_path):
        raise OSError(number, os.strerror(number))


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """The error says that it must be a folder."""
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="must be a folder"):
        Folder(tmp_path / "out")
