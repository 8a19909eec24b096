"""``gradcam explain``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradcam_client import HeatmapForm, OverlayJpeg, OverlayPng, Raw
from gradcam_client.requests import MANY_PASS_METHODS, ColormapName
from gradcam_server.cli.common import ImageSource, ImageSourceType, class_of, file_name
from gradcam_server.cli.errors import errors_for_people
from gradcam_server.cli.explain_output import (
    Outputs,
    print_result,
    report_failure,
    result_as_json,
    save_arrays,
)
from gradcam_server.cli.model_access import ModelAccess, model_access_options, say_compiled
from gradcam_server.cli.progress import progress_bar
from gradcam_server.cli.request_options import request_options

if TYPE_CHECKING:
    from gradcam_server.cli.local import LocalClient

_OVERLAYS = {".jpg": OverlayJpeg, ".jpeg": OverlayJpeg, ".png": OverlayPng}


@click.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=ImageSourceType())
@click.option(
    *("-o", "--output"),
    type=Path,
    help="Write the overlay to this .jpg or .png; with several images, or for a folder, "
    "one JPEG each into it.",
)
@click.option(
    *("--class", "classes"),
    multiple=True,
    metavar="CLASS",
    help="Explain this class: an index, a name or a WordNet id. Repeat for several.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), help="Explain the K best classes.  [default: 1]"
)
@click.option(
    "--against",
    metavar="CLASS",
    help="Explain the difference of each --class from this class.",
)
@request_options
@click.option("--predictions", type=click.IntRange(min=0), default=5, help="Number to print.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image.")
@click.option(
    "--npz",
    type=Path,
    help="Write classes, raw heat maps and logits to this file; with several images, to files in "
    "this folder.",
)
@model_access_options
def explain(
    images: Sequence[ImageSource],
    classes: Sequence[str],
    top_k: int | None,
    output: Path | None,
    npz: Path | None,
    as_json: bool,
    colormap: ColormapName,
    alpha: float,
    predictions: int,
    against: str | None,
    layers: Sequence[str],
    fusion: str,
    method: str,
    smooth: int | None,
    **options: Any,
) -> None:
    """Predict what is in images, and show where the model looked.

    \b
    gradcam explain cat.jpg -o out.jpg
    gradcam explain cat.jpg --class tabby --class "Egyptian cat" -o cats/
    gradcam explain cat.jpg --class tabby --against "tiger cat" --method layercam
    gradcam explain photos/*.jpg --server localhost:50051 -o overlays/ --json

    An IMAGE is a file, or an http(s) link, which is downloaded within 30 seconds and 64 MiB.

    If an image fails, its error is printed, the others are explained, and the exit status is 1.
    """  # noqa: D301 - click reads the character \b
    if classes and top_k:
        raise click.UsageError("--class and --top-k exclude each other")
    access = ModelAccess.take(options)
    if against and not classes:
        raise click.UsageError("--against needs a --class to compare")
    if npz and len(layers) > 1 and fusion == "none":
        raise click.UsageError(
            "--npz holds maps of one shape: name one layer, or add --fusion layercam"
        )
    overlays = Outputs(output, len(images), tuple(_OVERLAYS), ".jpg", "-o")
    many_passes = method in MANY_PASS_METHODS or smooth is not None
    counts_passes = many_passes and len(images) == 1
    # Several results on the terminal are their own progress.
    hides_progress = as_json or (len(images) > 1 and sys.stdout.isatty())
    numbers = Outputs(npz, len(images), (".npz",), ".npz", "--npz")
    heatmaps: list[HeatmapForm] = [Raw()]
    if output:
        heatmaps.append(_OVERLAYS[overlays.suffix](alpha=alpha, colormap=colormap))
    failed = False
    with (
        errors_for_people(),
        access.open(len(images) + many_passes, len(classes) or top_k or 1) as client,
        progress_bar(None if counts_passes else len(images), hidden=hides_progress) as progress,
    ):
        if not access.server:
            _show_likely_answers(images[0], client, options["resize"])
        outcomes = client.explain_stream(
            images,
            model=access.requested_model,
            classes=[class_of(name) for name in classes],
            against=class_of(against) if against else None,
            top_k=top_k,
            layers=layers,
            fusion=fusion,
            method=method,
            smooth=smooth,
            heatmaps=heatmaps,
            predictions=predictions,
            logits=bool(npz),
            on_progress=progress.show if counts_passes else None,
            **options,
        )
        for image, outcome in zip(images, outcomes, strict=True):
            path = file_name(image)
            if not counts_passes:
                progress.advance()
            if not outcome.ok:
                failed = True
                report_failure(image, outcome.error, as_json)
                continue
            say_compiled(access, outcome.result)
            written = overlays.write(path, outcome.result) if output else []
            if npz:
                save_arrays(numbers.path_for(path), outcome.result)
            if as_json:
                click.echo(json.dumps(result_as_json(image, outcome.result)))
            else:
                print_result(image, outcome.result, written)
    raise SystemExit(1 if failed else 0)


def _show_likely_answers(image: ImageSource, client: "LocalClient", resize: str) -> None:
    """Shows on stderr the best class by each likely preprocessing, if none is declared."""
    answers = client.predict_by_likely_preprocessing(image, resize)
    if answers:
        click.echo(f"The model's answers for {image} by each preprocessing:", err=True)
    for answer in answers:
        click.echo(
            f"  --preprocessing {answer.preprocessing:5}  {answer.probability:7.2%}  "
            f"{answer.index:>4}  {answer.name}",
            err=True,
        )
