"""Results as tables and plots."""

from pathlib import Path
from typing import Any

from gradcam_server.bench.report import BEGIN, END, write
from gradcam_server.bench.results import Machine, finish

SPREAD = {"median": 10.0, "low": 9.0, "high": 12.0, "count": 3}
CHECK = {"logits_error": 1e-6, "map_error": 2e-6, "map_correlation": 1.0, "same_class": 1.0}


def graph_row(subject: str, size: int, **more: Any) -> dict[str, Any]:
    roofline = {"arithmetic": 5.0, "bytes": 1.0}
    row = {"subject": subject, "device": "cpu", "batch_size": size, "failure": "", "exact": True}
    return {**row, "roofline_ms": roofline, "check": {**CHECK, "passed": True}, **more}


def timed(subject: str, size: int) -> dict[str, Any]:
    return graph_row(subject, size, ms_per_image=SPREAD, peak_mib=100.0, cost_per_million=0.25)


def load_row(rate: float | None) -> dict[str, Any]:
    return {
        "kind": "load",
        "server": "gradcam-server",
        "payload": "jpeg",
        "call": "unary",
        "loop": "open" if rate else "closed",
        "users": None if rate else 8,
        "requests_per_s": rate,
        "images_per_s": SPREAD,
        "efficiency": {**SPREAD, "median": 0.93},
        "latency_ms": {"p50": 20.0, "p90": 30.0, "p99": 40.0, "p99.9": None},
        "requests": 100,
        "failures": {"RESOURCE_EXHAUSTED": 3},
        "mean_batch_size": 3.5,
        "cpu": {"server_ms": 20.0, "front_end_ms": 1.2, "outside_graph_ms": 1.5},
        "generator": {"bottleneck": ""},
    }


def save(folder: Path, suite: str, rows: list[dict[str, Any]], **more: Any) -> Path:
    path = folder / f"{suite}.json"
    finish(suite, {"model": "resnet50"}, rows, machine=Machine.here(), **more).save(path)
    return path


def test_a_page_keeps_what_is_outside_the_markers(tmp_path: Path) -> None:
    """The same results give the same page; plots are beside it, and small."""
    page = tmp_path / "README.md"
    page.write_text("# Ours\n\n| a | row |\n\n" + BEGIN + "old\n" + END + "\n\nThe end.\n")
    rows = [timed("gradcam, xla", 1), timed("gradcam, xla", 8), graph_row("bad", 1, failure="no")]
    graph = save(tmp_path, "graph", rows, notes=["A note."])
    serving = save(tmp_path, "serving", [load_row(None), load_row(5.0), load_row(9.0)])
    written = write(page, [graph, serving])
    text = page.read_text("utf-8")
    assert text.startswith("# Ours\n\n| a | row |")
    assert text.endswith("The end.\n")
    assert "old" not in text
    assert len(written) == 3
    assert all(path.stat().st_size < 200_000 for path in written)
    write(page, [graph, serving])
    assert page.read_text("utf-8") == text


def test_each_figure_has_its_circumstances(tmp_path: Path) -> None:
    """Machine, versions, date, command, notes, and a mark of trial figures."""
    rows = [timed("gradcam, xla", 1), graph_row("bad", 1)]
    page = tmp_path / "new.md"
    results = save(tmp_path, "graph", rows, notes=["A note."], trial=True)
    write(page, [results])
    text = page.read_text("utf-8")
    assert Machine.here().processor in text
    assert "Trial figures" in text
    assert "- A note." in text
    assert "| gradcam, xla | 10.0 (9.0 to 12.0) | 100 | 1e-06, 2e-06 | 0.25 |" in text
    assert "| bad | wrong |" in text
    assert "| *roofline in float32* | 5.0 (arithmetic) |" in text


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    """A percentile without enough samples is empty, not zero."""
    page = tmp_path / "new.md"
    write(page, [save(tmp_path, "serving", [load_row(None)])])
    row = "| gradcam-server | jpeg | unary | 8 | 10.0 (9.0 to 12.0) | 0.93 | 20.0"
    assert f"{row} | 30.0 | 40.0 |  | 3 of 100 | 3.5 | 20.0 | 1.2 | 1.5 |" in page.read_text(
        "utf-8"
    )
