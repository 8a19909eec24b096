"""``gradcam bench`` against a real server."""

import subprocess
from pathlib import Path

import pytest

from gradcam_server.bench.results import Results
from support.server import GRADCAM, RunningServer


def bench(*arguments: str | Path) -> None:
    command = [GRADCAM, "bench", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_running_server_is_measured(server: RunningServer, images: Path, tmp_path: Path) -> None:
    """Every payload and call is measured in a closed loop, the first in an open loop."""
    output = tmp_path / "serving.json"
    bench(
        *("serving", "--server", server.address, "--pid", str(server.pid)),
        *("--image", images / "cat.jpg", "--users", "2", "--rates", "10"),
        *("--seconds", "0.4", "--rounds", "2", "--trial", "-o", output),
    )
    results = Results.load(output)
    loads = [row for row in results.rows if row["kind"] == "load"]
    seen = {(row["payload"], row["call"], row["loop"]) for row in loads}
    closed = {(p, c, "closed") for p in ("jpeg", "raw") for c in ("unary", "stream")}
    assert seen == closed | {("jpeg", "unary", "open")}
    for row in loads:
        assert row["failures"] == {}
        assert row["latency_ms"]["mean"] > row["stages_ms"]["compute"] > 0
        assert row["cpu"]["server_ms"] > row["cpu"]["front_end_ms"] >= 0
    assert results.trial
    assert results.command.startswith("gradcam bench serving")


def test_our_graph_is_measured_and_reported(tmp_path: Path) -> None:
    """The graph is checked against the eager tape, and its time is above the roofline."""
    output, page = tmp_path / "graph.json", tmp_path / "page.md"
    bench(
        *("graph", "--model", "efficientnet-lite0", "--weights", "imagenet", "--no-tutorials"),
        *("--compiler", "tensorflow", "--batch-sizes", "1,2", "--rounds", "1", "-o", output),
        *("--price-per-hour", "cpu=0.36"),
    )
    rows = Results.load(output).rows
    assert [row["batch_size"] for row in rows] == [1, 2]
    for row in rows:
        assert row["check"]["passed"]
        assert row["ms_per_image"]["median"] > row["roofline_ms"]["arithmetic"] > 0
        assert row["cost_per_million"] == pytest.approx(0.1 * row["ms_per_image"]["median"])
    bench("report", output, "-o", page)
    assert "| gradcam, tensorflow |" in page.read_text("utf-8")
    assert (tmp_path / "plots" / "graph.svg").exists()
