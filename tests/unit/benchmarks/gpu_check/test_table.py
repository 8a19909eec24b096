"""The table says what was found, and judges the goals by it."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from gpu_check import table


def spread(median: float) -> dict[str, Any]:
    return {"median": median, "low": median * 0.9, "high": median * 1.1, "count": 5}


def graph(batch_size: int, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "graph",
        "precision": "bfloat16",
        "batch_size": batch_size,
        "compile_s": 3.0,
        "images_per_s": spread(rate),
        "from_host_images_per_s": spread(rate * 0.9),
        "call_ms": batch_size / rate * 1e3,
        "numpy_call_ms": batch_size / rate * 2e3,
        "max_images_per_s": {"arithmetic": 2 * rate, "bytes": 3 * rate},
        "share_of_max": 0.5,
        **more,
    }


def served(frontends: int, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "served",
        "frontends": frontends,
        "payload": "raw",
        "call": "stream",
        "loop": "closed",
        "users": 128,
        "requests_per_s": None,
        "images_per_s": spread(rate),
        "latency_ms": {"p50": 4.0, "p99": None},
        "mean_batch_size": 100.0,
        "failures": {},
        "cpu": {"server_ms": 0.5, "front_end_ms": 0.4, "outside_graph_ms": None},
        "generator": {"cores": 0.5, "lag_p99_ms": 1.0, "bottleneck": ""},
        **more,
    }


def part(*rows: dict[str, Any], notes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"status": "done", "seconds": 1.0, "rows": list(rows), "notes": list(notes)}


@pytest.fixture
def results() -> dict[str, Any]:
    """Results that meet every goal by a little."""
    pair = {"kind": "pair", "way": "torch.compile", "batch_size": 128, "ratio": spread(1.31)}
    answer = {"kind": "answers", "model": "lite0", "graph": "gradcam", "correlation": 1.0}
    return {
        "format": 1,
        "platform": "cuda",
        "machine": {"device": "GPU of a test", "cores": 16},
        "prices": {"gpu": 3.0, "cpu": 1.0},
        "parts": {
            "answers": part({**answer, "ok": True}, {**answer, "ok": True}),
            "graph-bfloat16": part(
                graph(1, 510.0, explain_over_predict=spread(1.2)),
                graph(128, 16_000.0, explain_over_predict=spread(1.02)),
            ),
            "torch": part(
                {**pair, "ours_images_per_s": spread(16_000), "torch_images_per_s": spread(12_000)},
                {
                    "kind": "torch",
                    "way": "eager",
                    "batch_size": 1,
                    "images_per_s": spread(200.0),
                    "call_ms": 5.0,
                },
            ),
            "served": part(served(8, 12_000.0), served(4, 8_000.0)),
            "startup": part(
                {
                    "kind": "startup",
                    "export": "lite0",
                    "cache": "empty",
                    "ready_s": 20.0,
                    "graphs_s": None,
                    "compiled_modules": 2,
                    "cached_modules": 0,
                }
            ),
            "cpu": part(
                {
                    "kind": "cpu",
                    "way": "torch",
                    "batch_size": 8,
                    "call_ms": 80.0,
                    "images_per_s": spread(100.0),
                }
            ),
        },
    }


def verdicts(results: dict[str, Any]) -> list[bool | None]:
    return [is_met for *_, is_met in table.goals(results)]


def test_goals_are_met_by_these_results(results: dict[str, Any]) -> None:
    """Each goal is judged by its own figure; the served rate is over that from the host."""
    assert verdicts(results) == [True] * 6
    assert table.bare_rate(results) == pytest.approx(14_400)
    assert table.best_efficiency(results) == pytest.approx(12_000 / 14_400)
    assert "MISSED" not in table.format_results(results)


@pytest.mark.parametrize(
    ("goal", "where", "change"),
    [
        (0, "answers", {"ok": False}),
        (1, "graph-bfloat16", {"images_per_s": spread(14_999.0)}),
        (2, "torch", {"ratio": spread(1.29)}),
        (3, "graph-bfloat16", {"explain_over_predict": spread(1.04)}),
        (4, "served", {"images_per_s": spread(11_000.0)}),
        (5, "graph-bfloat16", {"call_ms": 2.1}),
    ],
)
def test_a_goal_is_missed_by_its_own_figure(
    results: dict[str, Any], goal: int, where: str, change: dict[str, Any]
) -> None:
    """A figure beyond its limit misses this goal."""
    for row in results["parts"][where]["rows"]:
        row.update({key: value for key, value in change.items() if key in row})
    assert verdicts(results)[goal] is False
    assert "MISSED" in table.format_results(results)


@pytest.mark.parametrize(
    ("goal", "where"), [(0, "answers"), (1, "graph-bfloat16"), (2, "torch"), (4, "served")]
)
def test_what_was_not_measured_is_neither_met_nor_missed(
    results: dict[str, Any], goal: int, where: str
) -> None:
    """A part without rows, or whose rows failed, leaves its goal open."""
    for row in results["parts"][where]["rows"]:
        if where != "answers":
            row["error"] = "ValueError: as asked"
    failed = table.format_results(results)
    results["parts"][where]["rows"] = []
    assert verdicts(results)[goal] is None
    assert "not measured" in table.format_results(results)
    if where != "answers":
        assert "failed: ValueError: as asked" in failed


def test_an_answer_that_failed_is_not_right(results: dict[str, Any]) -> None:
    """A graph that could not be run counts as a wrong answer."""
    row = {"kind": "answers", "model": "lite0", "error": "ValueError: as asked", "ok": False}
    results["parts"]["answers"]["rows"].append(row)
    assert verdicts(results)[0] is False
    assert "WRONG" in table.format_results(results)


def test_prices_are_weighed(results: dict[str, Any]) -> None:
    """Images per euro, and the throughput from which the GPU is cheaper, by the prices."""
    assert table.images_per_euro(100.0, 1.0) == 360_000
    text = table.format_results(results)
    assert "0.36 million images per euro" in text
    assert "17.28 million images per euro" in text
    assert "more than 300 images/s" in text


def test_a_rehearsal_judges_no_goal(results: dict[str, Any]) -> None:
    """Goals are those of a GPU."""
    results["platform"] = "cpu"
    text = table.format_results(results)
    assert "rehearsal" in text
    assert "MISSED" not in text
    assert "per euro" not in text


def test_empty_results_have_a_table() -> None:
    """A run whose parts all failed prints why, and no tables."""
    failed = {"status": "failed: a reason", "seconds": 0.1, "rows": [], "notes": ["a note"]}
    results = {"platform": "cuda", "prices": table.DEFAULT_PRICES, "parts": {"answers": failed}}
    text = table.format_results(results)
    assert "failed: a reason" in text
    assert "a note" in text


@pytest.mark.parametrize("price", ["gpu", "gpu=", "gpu=-1", "gpu=nan", "gpu=inf", "tpu=3", "3"])
def test_a_price_that_is_none_is_refused(price: str) -> None:
    """The error names the form of a price."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"gpu=3\.00"):
        table._price(price)


def test_given_prices_replace_the_assumptions() -> None:
    """What is not given stays as assumed."""
    parser = argparse.ArgumentParser()
    table.add_price_option(parser)
    arguments = parser.parse_args(["--price-per-hour", "gpu=2.5"])
    assert table.prices_of(arguments) == {"gpu": 2.5, "cpu": table.DEFAULT_PRICES["cpu"]}


def test_the_file_is_printed_and_drawn_again(
    results: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command prints the same table from the file, and two plots."""
    file = tmp_path / "gpu_check.json"
    file.write_text(json.dumps(results))
    plots = tmp_path / "plots"
    monkeypatch.setattr("sys.argv", ["table.py", str(file), "--plots", str(plots)])
    table.main()
    assert table.format_results(results) in capsys.readouterr().out
    assert sorted(path.name for path in plots.iterdir()) == [
        "gpu_batch_sizes.svg",
        "gpu_front_ends.svg",
    ]
    lines = table._lines_by_frontends(results)
    assert lines["bare graph, from the host"][0][1] == pytest.approx(14_400)
