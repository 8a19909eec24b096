"""``gradcam evaluate``."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from gradcam_client import Explanation, GradCamError, ImageArray, SmoothGrad
from gradcam_client.image_files import shown
from gradcam_client.requests import METHODS
from gradcam_server.cli.common import errors_for_people
from gradcam_server.cli.pictures import load_image, load_mask, new_figure
from gradcam_server.cli.session import (
    ALL_CLASSES,
    ONE_PASS_METHODS,
    ModelAccess,
    class_of,
    error_as_json,
    model_access_options,
    probabilities_of,
    progress_bar,
    say_compiled,
)
from gradcam_server.methods import faithfulness

# More than the input of the built-in models, and little enough to send many times.
_MAX_SIDE = 512
# Before the name of a method: its SmoothGrad.
_SMOOTH = "smooth-"

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


@dataclass(frozen=True)
class Protocol:
    """How heat maps are tested.

    Attributes:
        steps: Portions of pixels in a curve.
        deletion_baseline: What removed pixels become: a key of ``faithfulness.BASELINES``.
        insertion_baseline: Where pixels are inserted: another key.
    """

    steps: int
    deletion_baseline: str
    insertion_baseline: str

    @property
    def image_count(self) -> int:
        """How many images are predicted to test one heat map, and one that is explained."""
        return 2 * (self.steps + 1) + 2

    def images(
        self, image: NDArray[np.uint8], heatmap: NDArray[np.float32]
    ) -> Iterator[NDArray[np.uint8]]:
        """Yields the images of the deletion curve, of the insertion curve, and the explained."""
        baselines = faithfulness.BASELINES
        yield from faithfulness.deletion_images(
            image, heatmap, self.steps, baselines[self.deletion_baseline]
        )
        yield from faithfulness.insertion_images(
            image, heatmap, self.steps, baselines[self.insertion_baseline]
        )
        yield faithfulness.explanation_map(image, heatmap)

    def scores(self, probabilities: NDArray[np.float64]) -> dict[str, Any]:
        """Returns curves and metrics from the class's probability on each of the images."""
        deletion, insertion = probabilities[: self.steps + 1], probabilities[self.steps + 1 : -1]
        full, explained = deletion[0], probabilities[-1]
        return {
            "deletion_auc": faithfulness.auc(deletion),
            "insertion_auc": faithfulness.auc(insertion),
            "average_drop_percent": faithfulness.average_drop(full, explained),
            "increase_percent": faithfulness.increase_in_confidence(full, explained),
            "deletion": deletion.tolist(),
            "insertion": insertion.tolist(),
        }


@click.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=Path)
@click.option(
    *("--method", "methods"),
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="Evaluate this method. Repeat for several.  [default: all of one pass]",
)
@click.option(
    *("--smooth", "smooth_samples"),
    type=click.IntRange(min=1),
    help="Evaluate SmoothGrad over this many noisy copies beside each method of one pass.",
)
@click.option(
    "--layer", default="", show_default=False, help="Explain this layer (see gradcam layers)."
)
@click.option(
    *("--class", "target"),
    metavar="CLASS",
    help="Explain this class: an index, a name or a WordNet id.  [default: each image's best]",
)
@click.option(
    "--masks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of masks: for photo.jpg a photo.png of the same size, not zero on the object.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=faithfulness.DEFAULT_STEPS,
    help="Portions of pixels in a curve.",
)
@click.option(
    "--deletion-baseline",
    type=click.Choice(list(faithfulness.BASELINES)),
    default="mean",
    help="What removed pixels become: the image's mean colour, or the image blurred.",
)
@click.option(
    "--insertion-baseline",
    type=click.Choice(list(faithfulness.BASELINES)),
    default="blur",
    help="What pixels are inserted into.",
)
@model_access_options
@click.option("-o", "--output", type=Path, help="Write the report to this JSON file.")
@click.option("--plot", type=Path, help="Draw the mean curves into this file (.png, .svg, .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print the report in place of the table.")
def evaluate(
    images: Sequence[Path],
    methods: Sequence[str],
    smooth_samples: int | None,
    layer: str,
    target: str | None,
    masks: Path | None,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    steps: int,
    deletion_baseline: str,
    insertion_baseline: str,
    **where: Any,
) -> None:
    """Measure how faithful explanation methods are to the model.

    \b
    gradcam evaluate photos/*.jpg --method gradcam --plot curves.png
    gradcam evaluate photos/*.jpg --masks masks/ --server localhost:50051 -o report.json

    For each image and method the hottest pixels are removed (deletion, low is good) and
    inserted (insertion, high is good), and the image is dimmed where the map is cold
    (average drop and increase of confidence). With masks: whether the hottest pixel is on
    the object (pointing) and how much of the heat. All by the probability of one class.
    SECONDS is the device's and the rendering's share of one explanation.

    Images are scaled down to 512 pixels. One that fails is reported, the others go on, and
    the exit status is 1.
    """  # noqa: D301 - click reads the character \b
    protocol = Protocol(steps, deletion_baseline, insertion_baseline)
    access = ModelAccess(**where)
    methods = tuple(dict.fromkeys(methods)) or ONE_PASS_METHODS
    if smooth_samples:
        smoothed = (_SMOOTH + method for method in methods if method in ONE_PASS_METHODS)
        methods = (*methods, *smoothed)
    if plot:
        new_figure(1, 1)  # without matplotlib it fails now, not after the work
    records = []
    with (
        errors_for_people(),
        access.open(len(images) * protocol.image_count, 1) as client,
        progress_bar(len(images) * len(methods), hidden=as_json, description="Evaluating") as bar,
    ):
        smooth = SmoothGrad(smooth_samples) if smooth_samples else None
        evaluator = _Evaluator(client, access, layer, target, protocol, smooth)
        for path in images:
            record = evaluator.evaluate(path, methods, masks, bar.advance)
            records.append(record)
            for method, error in _errors(record):
                about = f"{shown(path)}: {method}" if method else shown(path)
                click.echo(f"Error: {about}: {error['message']}", file=sys.stderr)
    report = _report(records, methods, protocol)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)
    if plot and report["methods"]:
        plot.parent.mkdir(parents=True, exist_ok=True)
        _draw(report, plot)
    raise SystemExit(1 if any(True for record in records for _ in _errors(record)) else 0)


class _Evaluator:
    """Asks a client for heat maps, and for the probabilities of perturbed images."""

    def __init__(
        self,
        client: Any,
        access: ModelAccess,
        layer: str,
        target: str | None,
        protocol: Protocol,
        smooth: SmoothGrad | None,
    ) -> None:
        self._client, self._access, self._layer = client, access, layer
        self._classes = [] if target is None else [class_of(target)]
        self._protocol, self._smooth = protocol, smooth

    def evaluate(
        self, path: Path, methods: Sequence[str], masks: Path | None, advance: Any
    ) -> dict[str, Any]:
        """Returns the report on one image: values or an error for each method."""
        record: dict[str, Any] = {"path": str(path)}
        try:
            image = load_image(path, _MAX_SIDE)
            mask_path = masks / f"{path.stem}.png" if masks else None
            mask = None
            if mask_path and mask_path.exists():
                mask = load_mask(mask_path, path, image.shape)
        except (OSError, ValueError) as error:
            for _ in methods:
                advance()
            return record | {"error": error_as_json(error)}
        record |= {"height": image.shape[0], "width": image.shape[1], "mask": None, "methods": {}}
        if mask is not None:
            record["mask"] = str(mask_path)
        for method in methods:
            try:
                values = self._evaluate_method(image, mask, method, record)
            except (GradCamError, ValueError) as error:
                values = {"error": error_as_json(error)}
            record["methods"][method] = values
            advance()
        return record

    def _evaluate_method(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.bool_] | None,
        method: str,
        record: dict[str, Any],
    ) -> dict[str, Any]:
        began = time.monotonic()
        (outcome,) = self._client.explain_stream(
            [image],
            model=self._access.requested_model,
            classes=self._classes,
            layer=self._layer,
            method=method.removeprefix(_SMOOTH),
            smooth_grad=self._smooth if method.startswith(_SMOOTH) else None,
            heatmaps=[ImageArray()],
        )
        result = outcome.unwrap()
        say_compiled(self._access, result)
        explanation: Explanation = result.explanations[0]
        heatmap = explanation.heatmaps[0].array
        probabilities = self._probabilities(
            self._protocol.images(image, heatmap), explanation.index
        )
        record["model"] = result.model
        record["class"] = {
            "index": explanation.index,
            "name": explanation.name,
            "probability": probabilities[0],
        }
        values = {
            "layer": explanation.layer,
            "degenerate": explanation.degenerate,
            **self._protocol.scores(probabilities),
        }
        if mask is not None:
            values["pointing_percent"] = 100.0 * faithfulness.points_at(heatmap, mask)
            values["energy_inside"] = faithfulness.energy_inside(heatmap, mask)
        values["explain_s"] = (result.stats.compute_us + result.stats.render_us) / 1e6
        values["evaluate_s"] = time.monotonic() - began
        return values

    def _probabilities(
        self, images: Iterable[NDArray[np.uint8]], index: int
    ) -> NDArray[np.float64]:
        outcomes = self._client.explain_stream(
            images, model=self._access.requested_model, top_k=0, prediction_count=ALL_CLASSES
        )
        return np.array([probabilities_of(one.unwrap())[index] for one in outcomes])


def _errors(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    if "error" in record:
        yield "", record["error"]
    for method, values in record.get("methods", {}).items():
        if "error" in values:
            yield method, values["error"]


def _report(
    records: Sequence[Mapping[str, Any]], methods: Sequence[str], protocol: Protocol
) -> dict[str, Any]:
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
            "max_side_px": _MAX_SIDE,
        },
        "methods": summaries,
        "images": list(records),
    }


def _summary(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the images, and standard deviations (of a population)."""
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


def _print(report: Mapping[str, Any]) -> None:
    summaries: Mapping[str, Any] = report["methods"]
    if not summaries:
        return
    metrics = [one for one in _METRICS if any(one in values for values in summaries.values())]
    rows = [["METHOD", "IMAGES", *(_METRICS[metric][0] for metric in metrics)]]
    for method, values in summaries.items():
        row = [method, str(values["images"])]
        for metric in metrics:
            digits = _METRICS[metric][1]
            one = values.get(metric)
            row.append(f"{one['mean']:{digits}} ± {one['std']:{digits}}" if one else "-")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join((first, *others)).rstrip())
    layers = dict.fromkeys(values["layer"] for values in summaries.values())
    click.echo(f"{report['model']} at {', '.join(layers)}; mean ± standard deviation of images")
    for method, values in summaries.items():
        if values["degenerate"]:
            click.echo(f"{method}: {values['degenerate']} degenerate heat maps, all zero")


_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def _draw(report: Mapping[str, Any], path: Path) -> None:
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
