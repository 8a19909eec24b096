"""Compares servers with their peers: ratios of the same round, phase by phase."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gradcam_server.bench.statistics import Spread

# (name in a round, name in latency_ms, whether more is better)
FIGURES = (("images_per_s", "", True), ("p50_ms", "p50", False), ("p99_ms", "p99", False))
_PHASE = ("beside", "payload", "call", "loop", "users", "requests_per_s")
_Row = Mapping[str, Any]


def compare(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    """Compares the servers whose group is empty with the others of their phases.

    Args:
        rows: Rows of ``serving.measure``; those of one phase ran in the same rounds. A server with
            ``against`` is compared with that group only.

    Returns:
        For each server, phase, group of peers and figure a row: the figure of the server and of
        each peer, the name of the best peer, and the ratios to each peer. ``ratio`` summarises the
        ratios of the rounds; ``ratio_of_all`` is that of the figures over all rounds.
    """
    phases: dict[tuple[Any, ...], list[_Row]] = {}
    for row in rows:
        if row["kind"] == "load":
            phases.setdefault(tuple(row.get(name) for name in _PHASE), []).append(row)
    found: list[dict[str, Any]] = []
    for phase, subjects in phases.items():
        all_ours = [row for row in subjects if not row["group"]]
        for group in dict.fromkeys(row["group"] for row in subjects if row["group"]):
            peers = [row for row in subjects if row["group"] == group]
            for ours in all_ours:
                if ours.get("against", group) == group:
                    found += _figures(dict(zip(_PHASE, phase, strict=True)), group, ours, peers)
    return found


def _figures(
    phase: _Row, group: str, ours: _Row, peers: Sequence[_Row]
) -> Iterable[dict[str, Any]]:
    for name, percentile, more_is_better in FIGURES:
        values = {row["server"]: _value(row, name, percentile) for row in peers}
        known = {server: value for server, value in values.items() if value is not None}
        mine = _value(ours, name, percentile)
        if mine is None or not known:
            continue
        best = (max if more_is_better else min)(known, key=lambda server: known[server])
        by_server = {row["server"]: _rounds(ours, row, name) for row in peers}
        yield {
            "kind": "comparison",
            **phase,
            "server": ours["server"],
            "group": group,
            "figure": name,
            "ours": mine,
            "peers": values,
            "best": best,
            "ratio": by_server[best],
            "ratio_of_all": mine / known[best] if known[best] else None,
            "ratios": by_server,
        }


def _value(row: _Row, name: str, percentile: str) -> float | None:
    value: float | None = row["latency_ms"][percentile] if percentile else row[name]["median"]
    return value


def _rounds(ours: _Row, peer: _Row, name: str) -> dict[str, float] | None:
    """Returns the spread of the ratios of the rounds in which both answered."""
    pairs = [
        (mine[name], other[name])
        for mine, other in zip(ours["rounds"], peer["rounds"], strict=True)
        if mine[name] and other[name]
    ]
    if not pairs:
        return None
    values, bases = zip(*pairs, strict=True)
    return asdict(Spread.of_ratios(values, bases))
