"""Comparisons with peers: ratios of the same round."""

from typing import Any

import pytest

from gradcam_server.bench.comparison import compare


def load_row(server: str, group: str, rates: list[float], **more: Any) -> dict[str, Any]:
    """A row of a closed loop, whose latencies are 1000 over the rates."""
    rounds = [
        {"images_per_s": rate, "p50_ms": 1e3 / rate, "p99_ms": 2e3 / rate}
        if rate
        else {"images_per_s": 0.0, "p50_ms": None, "p99_ms": None}
        for rate in rates
    ]
    middle = sorted(rates)[len(rates) // 2]
    latency = {"p50": 1e3 / middle, "p99": 2e3 / middle} if middle else {"p50": None, "p99": None}
    row = {
        "kind": "load",
        "server": server,
        "group": group,
        "payload": "jpeg",
        "call": "unary",
        "loop": "closed",
        "users": 16,
        "requests_per_s": None,
        "images_per_s": {"median": middle},
        "latency_ms": latency,
        "rounds": rounds,
    }
    return {**row, **more}


def test_ratios_are_of_the_same_round() -> None:
    """If the machine is half as fast in a round, the ratio of that round is the same."""
    rows = [load_row("ours", "", [40, 20, 80]), load_row("a", "same", [50, 25, 100])]
    images, p50, p99 = compare(rows)
    assert images["ratio"] == {"median": 0.8, "low": 0.8, "high": 0.8, "count": 3}
    assert p50["ratio"]["median"] == p99["ratio"]["median"] == pytest.approx(1.25)
    assert (images["figure"], p50["figure"], p99["figure"]) == ("images_per_s", "p50_ms", "p99_ms")


def test_each_figure_and_phase_has_its_own_best_peer() -> None:
    """The most images, the least latency; groups are compared apart."""
    fast = load_row("fast", "same", [50, 50, 50], latency_ms={"p50": 30.0, "p99": 90.0})
    quick = load_row("quick", "same", [45, 45, 45], latency_ms={"p50": 20.0, "p99": 95.0})
    own = load_row("own", "own", [10, 10, 10])
    beside = load_row("quick", "same", [30, 30, 30], beside="a busy process")
    ours = [load_row("ours", "", [40] * 3), load_row("ours", "", [30] * 3, beside="a busy process")]
    found = compare([*ours, fast, quick, own, beside, {"kind": "bare"}])
    best = {(row["group"], row["beside"], row["figure"]): row["best"] for row in found}
    assert best["same", None, "images_per_s"] == best["same", None, "p99_ms"] == "fast"
    assert best["same", None, "p50_ms"] == best["same", "a busy process", "images_per_s"] == "quick"
    assert best["own", None, "images_per_s"] == "own"


def test_a_server_may_be_compared_with_one_group_only() -> None:
    """As one of less precision, which is no answer to peers with the same graph."""
    rows = [load_row("ours", "", [40] * 3), load_row("ours, bf16", "", [90] * 3, against="own")]
    found = compare([*rows, load_row("a", "same", [50] * 3), load_row("b", "own", [20] * 3)])
    images = [row for row in found if row["figure"] == "images_per_s"]
    assert {(row["server"], row["group"]): row["ratio"]["median"] for row in images} == {
        ("ours", "same"): 0.8,
        ("ours", "own"): 2.0,
        ("ours, bf16", "own"): 4.5,
    }


def test_a_peer_that_is_gone_is_not_the_best() -> None:
    """Without an answer there is no latency, and no ratio."""
    rows = [load_row("ours", "", [40, 40, 40]), load_row("gone", "same", [0, 0, 0])]
    (images,) = compare(rows)
    assert images["ratio"] is images["ratio_of_all"] is None
    assert compare([*rows, load_row("a", "same", [20, 20, 20])])[1]["best"] == "a"


def test_a_server_alone_has_no_comparison() -> None:
    """The suite without peers gives none."""
    assert compare([load_row("ours", "", [40])]) == []
    assert compare([load_row("a", "same", [40])]) == []
