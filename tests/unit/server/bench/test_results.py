"""Results as files."""

from pathlib import Path

import pytest

from gradcam_server.bench.results import Machine, Results, ResultsError, finish


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    """A file holds rows, machine, date and command."""
    rows = [{"images_per_s": 1.5}]
    written = finish("graph", {"rounds": 3}, rows, machine=Machine.here(), trial=True)
    written.save(tmp_path / "new" / "results.json")
    read = Results.load(tmp_path / "new" / "results.json")
    assert read.rows == rows
    assert read.machine == written.machine
    assert (read.date, read.command, read.trial) == (written.date, written.command, True)
    assert "numpy" in read.versions


def test_the_command_names_no_folders_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute folders are removed; file names, addresses and relative paths stay."""
    given = [
        "/opt/bin/gradcam",
        "bench",
        "-o",
        "/home/me/a.json",
        "x=/usr/bin/python",
        "a/b",
        "h:1",
    ]
    monkeypatch.setattr("sys.argv", given)
    command = finish("graph", {}, [], machine=Machine.here()).command
    assert command == "gradcam bench -o a.json x=python a/b h:1"


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 0}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    """The error names the file."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"other\.json"):
        Results.load(path)
