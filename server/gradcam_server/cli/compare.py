"""``gradcam compare``."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from gradcam_client import Explanation, ImageExplanation, OverlayPng
from gradcam_client.image_files import shown
from gradcam_client.requests import COLORMAPS, METHODS, ColormapName
from gradcam_server.cli.common import ALL_CLASSES, ONE_PASS_METHODS, class_of, probabilities_of
from gradcam_server.cli.errors import errors_for_people
from gradcam_server.cli.model_access import ModelAccess, model_access_options, say_compiled
from gradcam_server.cli.pictures import decode_png, load_image, new_figure
from gradcam_server.cli.progress import progress_bar

# Enough pixels for a sharp cell of the picture.
_MAX_SIDE = 800
_DPI = 200

# All sizes are in inches.
_CELL_AREA, _SMALL_CELL_AREA = 4.6, 3.2
_FEW_COLUMNS = 4
_GAP = 0.12
_CAPTION_HEIGHT = 0.42
_HEADING_HEIGHT = 0.32
_TITLE_HEIGHT = 0.45
_MARGIN = 0.2
# The width of a character of DejaVu Sans at one point, rounded up.
_CHARACTER, _BOLD_CHARACTER = 0.0082, 0.0096
_LABEL_CHARACTERS = 14
_DARK, _LIGHT = "#202124", "#5f6368"


@click.command(context_settings={"show_default": True})
@click.argument("image", type=Path)
@click.option(
    *("-o", "--output"),
    type=Path,
    required=True,
    help="Write the picture to this .png, .jpg, .pdf or .svg.",
)
@click.option(
    *("--class", "classes"),
    multiple=True,
    metavar="CLASS",
    help="A row for this class: an index, a name or a WordNet id. Repeat for several.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), help="Rows for the K best classes.  [default: 3]"
)
@click.option(
    *("--method", "methods"),
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="A column for this method. Repeat for several.  [default: all one-pass methods; with "
    "several layers gradcam]",
)
@click.option(
    *("--layer", "layers"),
    multiple=True,
    metavar="LAYER",
    help="Explain this layer; a column for each when there are several (see gradcam layers).",
)
@click.option(
    "--colormap", type=click.Choice(list(COLORMAPS)), default="jet", help="Colours of the overlays."
)
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.45, help="Weight of the colours.")
@model_access_options
def compare(
    image: Path,
    output: Path,
    classes: Sequence[str],
    top_k: int | None,
    methods: Sequence[str],
    layers: Sequence[str],
    colormap: ColormapName,
    alpha: float,
    **where: Any,
) -> None:
    """Draw one picture that compares methods, or layers, for classes of an image.

    \b
    gradcam compare cat.jpg -o methods.png
    gradcam compare cat.jpg -o layers.png --layer conv3_block4_out --layer conv5_block3_out

    Rows are classes; columns are methods at one layer, or layers with one method. The caption of
    each overlay holds the explained score and the range of the map before its ReLU.
    """  # noqa: D301 - click reads the character \b
    if classes and top_k:
        raise click.UsageError("--class and --top-k exclude each other")
    layers, methods = tuple(dict.fromkeys(layers)), tuple(dict.fromkeys(methods))
    if len(layers) > 1 and len(methods) > 1:
        raise click.UsageError("give several --method or several --layer, not both")
    if not methods:
        methods = ("gradcam",) if len(layers) > 1 else ONE_PASS_METHODS
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".pdf", ".svg"):
        raise click.UsageError(f"-o {output} must end in .png, .jpg, .pdf or .svg")
    columns = [(method, layer) for method in methods for layer in layers or ("",)]
    targets = [class_of(name) for name in classes]
    row_count = len(targets) or top_k or 3
    access = ModelAccess(**where)
    new_figure(1, 1)  # fails now if matplotlib is missing
    try:
        pixels = load_image(image, _MAX_SIDE)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{shown(image)}: {error}") from error
    answers = []
    with (
        errors_for_people(),
        access.open(1, row_count) as client,
        progress_bar(len(columns), hidden=False, description="Comparing") as bar,
    ):
        for method, layer in columns:
            (outcome,) = client.explain_stream(
                [pixels],
                model=access.requested_model,
                classes=targets,
                top_k=None if targets else row_count,
                method=method,
                layers=layer,
                heatmaps=[OverlayPng(alpha, colormap)],
                predictions=ALL_CLASSES,
            )
            answers.append(outcome.unwrap())
            say_compiled(access, answers[-1])
            bar.advance()
    output.parent.mkdir(parents=True, exist_ok=True)
    _draw(pixels, image.name, answers, by_layer=len(layers) > 1).savefig(output, dpi=_DPI)
    click.echo(f"wrote {output}")


def _draw(
    pixels: NDArray[np.uint8],
    name: str,
    answers: Sequence[ImageExplanation],
    *,
    by_layer: bool,
) -> Any:
    """Draws the picture: the original, labels of the rows, and a grid of overlays."""
    first = answers[0]
    rows, columns = len(first.explanations), len(answers)
    labels = [
        textwrap.fill(row.name or str(row.index), _LABEL_CHARACTERS) for row in first.explanations
    ]
    aspect = pixels.shape[1] / pixels.shape[0]
    area = _CELL_AREA if columns <= _FEW_COLUMNS else _SMALL_CELL_AREA
    cell_height = (area / aspect) ** 0.5
    cell_width = max(area / cell_height, 1.6)
    row_height = cell_height + _CAPTION_HEIGHT
    longest = max(len(line) for label in labels for line in label.split("\n"))
    labels_right = _MARGIN + cell_width + 2 * _GAP + max(longest, 9) * 12 * _BOLD_CHARACTER
    grid_left = labels_right + _GAP
    width = grid_left + columns * (cell_width + _GAP) - _GAP + _MARGIN
    grid_top = _MARGIN + _TITLE_HEIGHT + _HEADING_HEIGHT
    height = grid_top + rows * row_height + _MARGIN / 2
    figure = new_figure(width, height)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **{"color": _DARK, **style})

    def place_image(x: float, y: float, shown: NDArray[np.uint8]) -> None:
        box = (x / width, 1 - (y + cell_height) / height, cell_width / width, cell_height / height)
        axes = figure.add_axes(box)
        axes.imshow(shown, interpolation="lanczos", interpolation_stage="rgba")
        axes.set_axis_off()

    best = first.explanations[0]
    title = f"{first.model} by {best.method}" if by_layer else f"{first.model} at {best.layer}"
    size = min(15, (width - 2 * _MARGIN) / (len(title) * _BOLD_CHARACTER))
    write(_MARGIN, _MARGIN, title, fontsize=size, fontweight="bold", va="top")
    heading_y = grid_top - 0.09
    write(_MARGIN + cell_width / 2, heading_y, **_heading(name, cell_width))
    place_image(_MARGIN, grid_top, pixels)
    probabilities = probabilities_of(first)
    for row, explanation in enumerate(first.explanations):
        y = grid_top + row * row_height
        middle = y + cell_height / 2 + 0.1 * labels[row].count("\n")
        style = {"ha": "right", "x": labels_right}
        write(y=middle, text=labels[row], fontsize=12, fontweight="bold", va="bottom", **style)
        probability = probabilities[explanation.index]
        percent = f"{probability:.1%}" if probability >= 0.001 else "below 0.1%"
        write(y=middle + 0.06, text=percent, fontsize=11, va="top", color=_LIGHT, **style)
    for column, answer in enumerate(answers):
        x = grid_left + column * (cell_width + _GAP)
        top = answer.explanations[0]
        name = top.layer if by_layer else top.method
        write(x + cell_width / 2, heading_y, **_heading(name, cell_width))
        for row, explanation in enumerate(answer.explanations):
            y = grid_top + row * row_height
            place_image(x, y, decode_png(explanation.overlay))
            caption = _caption(explanation, int(cell_width / (8 * _CHARACTER)))
            style = {"ha": "center", "va": "top", "color": _LIGHT}
            write(x + cell_width / 2, y + cell_height + 0.06, caption, fontsize=8, **style)
    return figure


def _caption(explanation: Explanation, max_characters: int) -> str:
    """Returns score and range; in two lines if one line exceeds ``max_characters``."""
    minus = str.maketrans("-", "\N{MINUS SIGN}")
    score = f"score {explanation.score:z.2f}".translate(minus)
    span = f"raw {explanation.raw_min:.2g} to {explanation.raw_max:.2g}".translate(minus)
    if explanation.degenerate:
        return f"{score}, {span}\nall zero: no evidence for this class"
    separator = ", " if len(score) + len(span) + 2 <= max_characters else "\n"
    return f"{score}{separator}{span}"


def _heading(text: str, width: float) -> dict[str, Any]:
    """Returns a heading of at most ``width`` inches: made smaller, then cut in the middle."""
    size = max(8, min(11, width / (len(text) * _BOLD_CHARACTER)))
    max_characters = int(width / (size * _BOLD_CHARACTER))
    half = (max_characters - 1) // 2
    text = text if len(text) <= max_characters else f"{text[:half]}…{text[-half:]}"
    return {"text": text, "fontsize": size, "fontweight": "bold", "ha": "center", "va": "bottom"}
