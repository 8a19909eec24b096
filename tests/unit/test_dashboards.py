"""The dashboard, the alerts and the page of operations ask for metrics that there are."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gradcam_server.telemetry.metric_table import DEFINITIONS
from gradcam_server.telemetry.metrics import Metrics, ModelInfo

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "gradcam.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
PAGE = ROOT / "docs" / "operations.md"

# Prometheus adds these to all that it scrapes.
TARGET_LABELS = {"job", "instance"}
CUMULATIVE = ("_total", "_bucket", "_sum", "_count")


def exported() -> dict[str, set[str]]:
    """Returns every series that a server exports once all has happened, with its labels."""
    metrics = Metrics()
    metrics.set_models([ModelInfo("m", "imagenet", "layer", "xla")])
    metrics.set_build("1.0", "2.21")
    metrics.request_done("ExplainImage", "m", "OK", 0.1)
    metrics.batch_done("m", 3, 4, "idle")
    metrics.device_ran(0, 0.1)
    metrics.set_front_end_resident(1, 1)
    metrics.token_request("ci", "OK")
    metrics.faithfulness("m", "gradcam", 0.5, 0.1)
    metrics.engine_beat(1, 1, 1, {"GPU:0": (1, 2)})
    series: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.exposition()[0].decode()):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


SERIES = exported()


@dataclass
class Query:
    """A query, and where it stands."""

    place: str
    text: str

    @property
    def tree(self) -> Any:
        plain = self.text.replace("$__rate_interval", "5m").replace("$__range", "1h")
        return promql.parse(plain)


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[Query]:
    found = [
        Query(panel["title"], target["expr"])
        for panel in panels()
        for target in panel.get("targets", ())
    ]
    found += [Query(alert["alert"], alert["expr"]) for alert in alerts()]
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("| ") and "gradcam_" in line and not line.startswith("| `gradcam_"):
            found.append(Query("operations.md", line.split("`")[1]))
    return found


def nodes(tree: Any) -> Iterator[Any]:
    found: list[Any] = []
    promql.walk(tree, lambda node: found.append(node))
    return iter(found)


def faults(query: Query) -> list[str]:
    """Returns what is wrong with a query."""
    found: list[str] = []
    ranged = [node.vector_selector for node in nodes(query.tree) if hasattr(node, "range")]
    instant = [node for node in nodes(query.tree) if isinstance(node, promql.VectorSelector)]
    in_ranges = {str(one) for one in ranged}
    labels_there = set(TARGET_LABELS)
    for selector in [*ranged, *instant]:
        labels_there |= SERIES.get(selector.name or "", set())
        found += _selector_faults(selector)
        if (selector.name or "").endswith(CUMULATIVE) and str(selector) not in in_ranges:
            found.append(f"{selector.name} only ever grows: it needs rate or increase")
    for node in nodes(query.tree):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            unknown = set(node.modifier.labels) - labels_there
            found += [f"no metric of the query has the label {label}" for label in unknown]
        if isinstance(node, promql.Call) and node.func.name == "histogram_quantile":
            aggregation = node.args[1]
            if "le" not in aggregation.modifier.labels:
                found.append("histogram_quantile needs the label le")
    return found


def _selector_faults(selector: Any) -> list[str]:
    if selector.name not in SERIES:
        return [f"there is no metric {selector.name}"]
    known = SERIES[selector.name] | TARGET_LABELS
    values = {
        label: allowed
        for one in DEFINITIONS
        if selector.name.startswith(one.name)
        for label, allowed in one.labels.items()
        if allowed
    }
    found = []
    for matcher in selector.matchers.matchers:
        if matcher.name not in known:
            found.append(f"{selector.name} has no label {matcher.name}")
        elif matcher.name in values and not set(matcher.value.split("|")) <= {
            *values[matcher.name]
        }:
            found.append(f"{matcher.name} of {selector.name} is never {matcher.value}")
    return found


@pytest.mark.parametrize("query", queries(), ids=lambda one: one.place)
def test_queries_ask_for_what_is_exported(query: Query) -> None:
    """Each metric and label is in the registry, counters are rated, quantiles keep le."""
    assert not faults(query), query.text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sum(gradcam_queue_lenght)", "no metric gradcam_queue_lenght"),
        ("rate(gradcam_requests[5m])", "no metric gradcam_requests"),
        ('rate(gradcam_requests_total{status="OK"}[5m])', "no label status"),
        ('rate(gradcam_rejected_total{reason="full"}[5m])', "never full"),
        ("sum by (model) (rate(gradcam_dropped_total[5m]))", "label model"),
        ("gradcam_requests_total > 5", "needs rate"),
        (
            "histogram_quantile(0.9, sum by (rpc) (rate(gradcam_request_seconds_bucket[5m])))",
            "needs the label le",
        ),
    ],
)
def test_the_check_finds_what_is_wrong(text: str, fault: str) -> None:
    """A negative control: each kind of mistake is found."""
    assert any(fault in one for one in faults(Query("", text))), faults(Query("", text))


def test_every_metric_is_declared_and_happens() -> None:
    """The registry exports the table, the whole table, and of ours nothing else."""
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in SERIES} | SERIES.keys()
    declared = {one.name: one for one in DEFINITIONS}
    assert declared.keys() <= names
    for name, labels in SERIES.items():
        if name.startswith("gradcam_"):
            one = declared.get(name) or declared[re.sub("_(bucket|sum|count)$", "", name)]
            assert labels - {"le"} == {*one.labels}, name


def test_every_metric_is_on_the_dashboard() -> None:
    """What is worth counting is worth seeing."""
    text = DASHBOARD.read_text("utf-8")
    assert [one.name for one in DEFINITIONS if one.name not in text] == []


def test_panels_do_not_overlap() -> None:
    """Each has its own id and its own place within 24 columns."""
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in panels()]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or apart, (one, other)


def test_the_dashboard_asks_the_chosen_source_about_the_chosen_servers() -> None:
    """Whatever the data source is called, and whichever job it is."""
    for panel in panels():
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            selectors = target["expr"].count("{")
            assert target["expr"].count('job=~"$job",instance=~"$instance"') == selectors


@pytest.mark.parametrize("alert", alerts(), ids=lambda one: one["alert"])
def test_alerts_say_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    """Each has a severity, a summary and a paragraph in the page of operations."""
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"]["summary"]
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("alert", alerts(), ids=lambda one: one["alert"])
def test_summaries_use_labels_that_the_alert_keeps(alert: dict[str, Any]) -> None:
    """A label that the query aggregates away would be empty in the message."""
    used = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
    kept: set[str] = set()
    for node in nodes(Query("", alert["expr"]).tree):
        if isinstance(node, promql.AggregateExpr):
            assert node.modifier is not None
            kept |= set(node.modifier.labels)
    assert used <= (kept or TARGET_LABELS)
