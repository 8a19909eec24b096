"""Results as tables and plots."""

from pathlib import Path
from typing import Any

import pytest

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
    settings = {"model": "resnet50", "rates": [5.0], "load": [0.5]}
    finish(suite, settings, rows, machine=Machine.here(), **more).save(path)
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


@pytest.mark.parametrize(
    ("figure", "digits", "row"),
    [
        ("images_per_s", "images/s", "| jpeg, 8 users | 40.0 | 50.0 | 45.0 | 0.80 | 10.00 (9.00 "),
        ("p50_ms", "p50 in ms", "| jpeg, 8 users | 40 | 50 | 45 | 0.80 | 10.00 (9.00 to 12.00) |"),
    ],
)
def test_peers_stand_beside_the_server(figure: str, digits: str, row: str, tmp_path: Path) -> None:
    """A row for each load, a column for each server, the ratio to the best; and the choice."""
    comparison = {
        "kind": "comparison",
        "payload": "jpeg",
        "call": "unary",
        "loop": "closed",
        "users": 8,
        "requests_per_s": None,
        "beside": None,
        "server": "gradcam-server",
        "group": "the same graph",
        "figure": figure,
        "ours": 40.0,
        "peers": {"a": 50.0, "b": 45.0},
        "best": "a",
        "ratio": SPREAD,
        "ratio_of_all": 0.8,
        "ratios": {"a": SPREAD, "b": None},
    }
    candidate = {"kind": "candidate", "server": "c", "images_per_s": 9.0, "p50_ms": None}
    page = tmp_path / "new.md"
    rows = [load_row(None), comparison, {**candidate, "kept": False}]
    write(page, [save(tmp_path, "serving", rows)])
    text = page.read_text("utf-8")
    assert f"| {digits}, peers with the same graph | gradcam-server | a | b | ours / best |" in text
    assert row in text
    assert "| c | 9.0 |  | no |" in text


def test_one_picture_holds_all_servers(tmp_path: Path) -> None:
    """A panel for each percentile; loads beside a neighbour and other payloads are left out."""
    ours = [load_row(rate) for rate in (5.0, 9.0)]
    peers = [{**row, "server": "LitServe"} for row in ours]
    others = [{**row, "server": "hidden", "beside": "a busy process"} for row in ours]
    others += [{**row, "server": "hidden", "payload": "raw"} for row in ours]
    write(tmp_path / "new.md", [save(tmp_path, "serving", [*ours, *peers, *others])])
    picture = (tmp_path / "plots" / "serving.svg").read_text("utf-8")
    for text in ("gradcam-server", "LitServe", "p50 in ms (jpeg)", "p99 in ms (jpeg)"):
        assert f"<!-- {text} -->" in picture
    assert "hidden" not in picture


def test_overload_is_a_table(tmp_path: Path) -> None:
    """Goodput, and how the other calls ended; there is no picture."""
    latency = {"p50": 2.5, "p99": None}
    outcomes = {
        "answered": {"count": 70, "with_retry_info": 0, "latency_ms": latency},
        "RESOURCE_EXHAUSTED": {"count": 25, "with_retry_info": 25, "latency_ms": latency},
        "TimeoutError": {"count": 5, "with_retry_info": 0, "latency_ms": latency},
    }
    row = {"server": "LitServe", "payload": "raw", "load": 1.5, "images_per_s": SPREAD}
    row |= {"goodput": {**SPREAD, "median": 0.7, "low": 0.6, "high": 0.75}, "calls": 100}
    row |= {"goodput_without_generator": 0.72, "generator_cores": 0.1, "outcomes": outcomes}
    page = tmp_path / "new.md"
    assert write(page, [save(tmp_path, "overload", [row])]) == [page]
    cells = "0.70 (0.60 to 0.75) | 0.72 | RESOURCE_EXHAUSTED 25%: 2.5, - | 25 of 25 | 5.0% | 0.10 |"
    assert f"| LitServe | raw | 1.5 | 10.0 | {cells}" in page.read_text("utf-8")
