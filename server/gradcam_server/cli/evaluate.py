"""``gradcam evaluate``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gradcam_client import SmoothGrad
from gradcam_client.image_files import shown
from gradcam_client.requests import METHODS
from gradcam_server.cli.common import ONE_PASS_METHODS
from gradcam_server.cli.errors import errors_for_people
from gradcam_server.cli.evaluation import SMOOTH, Evaluator, Protocol, errors_of
from gradcam_server.cli.evaluation_report import draw_curves, make_report, print_table
from gradcam_server.cli.model_access import ModelAccess, model_access_options
from gradcam_server.cli.pictures import new_figure
from gradcam_server.cli.progress import progress_bar
from gradcam_server.methods import faithfulness


@click.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=Path)
@click.option(
    *("--method", "methods"),
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="Evaluate this method. Repeat for several.  [default: all one-pass methods]",
)
@click.option(
    *("--smooth", "smooth_samples"),
    type=click.IntRange(min=1),
    help="Also evaluate SmoothGrad, over this many noisy copies, of each one-pass method.",
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
    help="Steps of a curve: portions of pixels.",
)
@click.option(
    "--deletion-baseline",
    type=click.Choice(list(faithfulness.BASELINES)),
    default="mean",
    help="Replacement of deleted pixels: the image's mean colour, or the blurred image.",
)
@click.option(
    "--insertion-baseline",
    type=click.Choice(list(faithfulness.BASELINES)),
    default="blur",
    help="The image before any pixel is inserted.",
)
@model_access_options
@click.option("-o", "--output", type=Path, help="Write the report to this JSON file.")
@click.option("--plot", type=Path, help="Draw the mean curves into this file (.png, .svg, .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of the table.")
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

    For each image and method, the hottest pixels are deleted step by step (DELETION, low is
    good) and inserted (INSERTION, high is good), and the image is dimmed where the map is cold
    (average DROP and INCREASE of confidence). With masks: whether the hottest pixel is on the
    object (POINTING), and the share of the heat on it (ENERGY INSIDE). All metrics use the
    probability of one class. SECONDS is the time to compute and render one explanation.

    Images are scaled down to 512 pixels. If an image fails, its error is printed, the others are
    evaluated, and the exit status is 1.
    """  # noqa: D301 - click reads the character \b
    protocol = Protocol(steps, deletion_baseline, insertion_baseline)
    access = ModelAccess(**where)
    methods = tuple(dict.fromkeys(methods)) or ONE_PASS_METHODS
    if smooth_samples:
        smoothed = (SMOOTH + method for method in methods if method in ONE_PASS_METHODS)
        methods = (*methods, *smoothed)
    if plot:
        new_figure(1, 1)  # fails now if matplotlib is missing
    records = []
    with (
        errors_for_people(),
        access.open(len(images) * protocol.image_count, 1) as client,
        progress_bar(len(images) * len(methods), hidden=as_json, description="Evaluating") as bar,
    ):
        smooth = SmoothGrad(smooth_samples) if smooth_samples else None
        evaluator = Evaluator(client, access, layer, target, protocol, smooth)
        for path in images:
            record = evaluator.evaluate(path, methods, masks, bar.advance)
            records.append(record)
            for method, error in errors_of(record):
                about = f"{shown(path)}: {method}" if method else shown(path)
                click.echo(f"Error: {about}: {error['message']}", file=sys.stderr)
    report = make_report(records, methods, protocol)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(report))
    else:
        print_table(report)
    if plot and report["methods"]:
        plot.parent.mkdir(parents=True, exist_ok=True)
        draw_curves(report, plot)
    raise SystemExit(1 if any(True for record in records for _ in errors_of(record)) else 0)
