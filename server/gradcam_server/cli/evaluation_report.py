"""The report of ``gradcam evaluate``: JSON, a table, and a plot of the curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from gradcam_server.cli.evaluation import MAX_SIDE, Protocol
from gradcam_server.cli.pictures import new_figure

_METRICS = {
    "deletion_auc": ("DELETION ↓", ".3f"),
    "insertion_auc": ("INSERTION ↑", ".3f"),
    "average_drop_percent": ("DROP % ↓", ".1f"),
    "increase_percent": ("INCREASE % ↑", ".1f"),
    "pointing_percent": ("POINTING % ↑", ".1f"),
    "energy_inside": ("ENERGY INSIDE ↑", ".3f"),
    "explain_s": ("SECONDS", ".3f"),
}
_CURVES = ("deletion", "insertion")


def make_report(
    records: Sequence[Mapping[str, Any]], methods: Sequence[str], protocol: Protocol
) -> dict[str, Any]:
    """Returns the report as JSON values: means over images by method, and all records."""
    models = sorted({record["model"] for record in records if "model" in record})
    summaries = {}
    for method in methods:
        done = [
            values
            for record in records
            if "error" not in (values := record.get("methods", {}).get(method, {"error": None}))
        ]
        if done:
            summaries[method] = _summary(done)
    return {
        "model": models[0] if models else None,
        "protocol": {
            "steps": protocol.steps,
            "deletion_baseline": protocol.deletion_baseline,
            "insertion_baseline": protocol.insertion_baseline,
            "max_side_px": MAX_SIDE,
        },
        "methods": summaries,
        "images": list(records),
    }


def _summary(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns means over the images, and standard deviations (of a population)."""
    summary: dict[str, Any] = {
        "layer": done[0]["layer"],
        "images": len(done),
        "degenerate": sum(values["degenerate"] for values in done),
    }
    for metric in _METRICS:
        known = [values[metric] for values in done if metric in values]
        if known:
            summary[metric] = {"mean": float(np.mean(known)), "std": float(np.std(known))}
    for curve in _CURVES:
        summary[curve] = np.mean([values[curve] for values in done], axis=0).tolist()
    return summary


def print_table(report: Mapping[str, Any]) -> None:
    """Prints means and standard deviations, a row for each method."""
    summaries: Mapping[str, Any] = report["methods"]
    if not summaries:
        return
    metrics = [
        metric for metric in _METRICS if any(metric in values for values in summaries.values())
    ]
    rows = [["METHOD", "IMAGES", *(_METRICS[metric][0] for metric in metrics)]]
    for method, values in summaries.items():
        row = [method, str(values["images"])]
        for metric in metrics:
            digits = _METRICS[metric][1]
            value = values.get(metric)
            row.append(f"{value['mean']:{digits}} ± {value['std']:{digits}}" if value else "-")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join((first, *others)).rstrip())
    layers = dict.fromkeys(values["layer"] for values in summaries.values())
    click.echo(f"{report['model']} at {', '.join(layers)}; mean ± standard deviation of images")
    for method, values in summaries.items():
        if values["degenerate"]:
            click.echo(f"{method}: {values['degenerate']} heat maps are all zero")


_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def draw_curves(report: Mapping[str, Any], path: Path) -> None:
    """Draws the mean deletion and insertion curves into a file."""
    legend_height = 0.6 + 0.2 * ((len(report["methods"]) + 1) // 2)
    figure = new_figure(11.5, 4.2 + legend_height)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, curve, done, better in zip(
        *(axes, _CURVES, ("removed", "inserted"), ("lower", "higher")),
        strict=True,
    ):
        for number, (method, values) in enumerate(report["methods"].items()):
            share = np.linspace(0, 100, len(values[curve]))
            area = values[f"{curve}_auc"]
            ax.plot(
                share,
                values[curve],
                color=_COLORS[number % len(_COLORS)],
                linestyle=_DASHES[number % len(_DASHES)],
                linewidth=2,
                label=f"{method}  {area['mean']:.3f} ± {area['std']:.3f}",
            )
        ax.set_title(f"{curve.capitalize()}: {better} is better", fontsize=12, fontweight="bold")
        baseline = report["protocol"][f"{curve}_baseline"]
        ax.set_xlabel(f"hottest pixels {done} (%), baseline: {baseline}")
        ax.set_xlim(0, 100)
        ax.set_ylim(0, 1.02)
        ax.grid(color="#dddddd", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 2}
        ax.legend(title="AUC", fontsize=9, frameon=False, **below)
    axes[0].set_ylabel("mean probability of the class")
    layers = dict.fromkeys(values["layer"] for values in report["methods"].values())
    count = max(values["images"] for values in report["methods"].values())
    images = "1 image" if count == 1 else f"{count} images"
    figure.suptitle(f"{report['model']}, {', '.join(layers)}, {images}", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=160)
