"""``gradcam explain``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gradcam_client import (
    HeatmapForm,
    ImageExplanation,
    OverlayJpeg,
    OverlayPng,
    Raw,
    SmoothGrad,
)
from gradcam_client.image_files import shown
from gradcam_client.requests import (
    COLORMAPS,
    LAYER_FUSIONS,
    MANY_PASS_METHODS,
    METHODS,
    RESIZE_MODES,
    SCORE_TYPES,
    Target,
)
from gradcam_server.cli.common import errors_for_people
from gradcam_server.cli.connection import readable
from gradcam_server.cli.session import (
    ModelAccess,
    class_of,
    error_as_json,
    model_access_options,
    progress_bar,
    say_compiled,
)

if TYPE_CHECKING:
    from gradcam_server.cli.local import LocalClient

_OVERLAYS = {".jpg": OverlayJpeg, ".jpeg": OverlayJpeg, ".png": OverlayPng}


@click.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=Path)
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
    help="Explain why the class rather than this one.",
)
@click.option(
    *("--layer", "layers"),
    multiple=True,
    help="Explain this layer (see gradcam layers). Repeat for several.",
)
@click.option(
    "--fusion",
    type=click.Choice(list(LAYER_FUSIONS)),
    default="none",
    help="Fuse the maps of several layers into one.",
)
@click.option(
    "--method", type=click.Choice(list(METHODS)), default="gradcam", help="Explain by this method."
)
@click.option(
    *("--score", "score_type"),
    type=click.Choice(list(SCORE_TYPES)),
    default="logit",
    help="What is explained of a class.",
)
@click.option(
    *("--passes", "pass_count"),
    type=click.IntRange(min=1),
    help="Channels of scorecam, or steps of integrated-gradients.  [default: 64, 32]",
)
@click.option(
    *("--smooth", "smooth_samples"),
    type=click.IntRange(min=1),
    help="SmoothGrad: the mean over this many noisy copies, with any other method.",
)
@click.option(
    "--resize",
    type=click.Choice(list(RESIZE_MODES)),
    default="stretch",
    help="How the image is brought to the model's input size.",
)
@click.option(
    "--colormap", type=click.Choice(list(COLORMAPS)), default="jet", help="Colours of the overlay."
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.4,
    help="Weight of the colours over the image.",
)
@click.option("--predictions", type=click.IntRange(min=0), default=5, help="How many to print.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image.")
@click.option(
    "--npz",
    type=Path,
    help="Keep the numbers: classes, raw heatmaps and logits. A file; with several images, "
    "a folder.",
)
@model_access_options
def explain(
    images: Sequence[Path],
    classes: Sequence[str],
    top_k: int | None,
    output: Path | None,
    npz: Path | None,
    as_json: bool,
    colormap: str,
    alpha: float,
    predictions: int,
    against: str | None,
    layers: Sequence[str],
    fusion: str,
    method: str,
    smooth_samples: int | None,
    **options: Any,
) -> None:
    """Predict what is in images, and see where the model looked.

    \b
    gradcam explain cat.jpg -o out.jpg
    gradcam explain cat.jpg --class tabby --class "Egyptian cat" -o cats/
    gradcam explain cat.jpg --class tabby --against "tiger cat" --method layercam
    gradcam explain photos/*.jpg --server localhost:50051 -o overlays/ --json

    An image that fails is reported, the others go on, and the exit status is 1.
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
    targets: list[Target] = [class_of(name) for name in classes]
    if against:
        targets = [(class_of(name), class_of(against)) for name in classes]
    overlays = Outputs(output, len(images), tuple(_OVERLAYS), ".jpg", "-o")
    many_passes = method in MANY_PASS_METHODS or smooth_samples is not None
    counts_passes = many_passes and len(images) == 1
    numbers = Outputs(npz, len(images), (".npz",), ".npz", "--npz")
    heatmaps: list[HeatmapForm] = [Raw()]
    if output:
        heatmaps.append(_OVERLAYS[overlays.suffix](alpha=alpha, colormap=colormap))
    failed = False
    with (
        errors_for_people(),
        access.open(len(images) + many_passes, len(targets) or top_k or 1) as client,
        progress_bar(None if counts_passes else len(images), hidden=as_json) as progress,
    ):
        if not access.server:
            _show_likely_answers(images[0], client, options["resize"])
        outcomes = client.explain_stream(
            images,
            model=access.requested_model,
            classes=targets,
            top_k=top_k,
            layer=layers,
            layer_fusion=fusion,
            method=method,
            smooth_grad=SmoothGrad(smooth_samples) if smooth_samples else None,
            heatmaps=heatmaps,
            prediction_count=predictions,
            include_logits=bool(npz),
            on_progress=progress.show if counts_passes else None,
            **options,
        )
        for path, outcome in zip(images, outcomes, strict=True):
            if not counts_passes:
                progress.advance()
            if outcome.result is None:
                failed = True
                _report_failure(path, outcome.error, as_json)
                continue
            say_compiled(access, outcome.result)
            written = overlays.write(path, outcome.result) if output else []
            if npz:
                _save_numbers(numbers.path_for(path), outcome.result)
            if as_json:
                click.echo(json.dumps(_as_json(path, outcome.result)))
            else:
                _print(path, outcome.result, written)
    raise SystemExit(1 if failed else 0)


class Outputs:
    """Where the results of each image go: a file, or a folder for several images.

    Args:
        destination: The file or folder, None for nowhere.
        count: Number of images.
        suffixes: What a file's name may end in.
        suffix: What names in a folder end in.
        option: The option, for errors.

    Raises:
        click.UsageError: A file for several images, or one with another suffix.
    """

    def __init__(
        self,
        destination: Path | None,
        count: int,
        suffixes: tuple[str, ...],
        suffix: str,
        option: str,
    ) -> None:
        self._destination, self.suffix = destination, suffix
        self._taken: set[Path] = set()
        if destination is None:
            return
        is_file = destination.suffix.lower() in suffixes and not destination.is_dir()
        self._is_folder = not is_file
        if is_file and count > 1:
            raise click.UsageError(
                f"{option} {destination} is one file for {count} images; name a folder"
            )
        if is_file:
            self.suffix = destination.suffix.lower()
            destination.parent.mkdir(parents=True, exist_ok=True)
        elif destination.suffix and not destination.is_dir():
            raise click.UsageError(
                f"{option} {destination}: a file must end in {', '.join(suffixes)}"
            )
        else:
            destination.mkdir(parents=True, exist_ok=True)

    def path_for(self, image: Path, mark: str = "") -> Path:
        """Returns the path for an image's result, never the same twice."""
        assert self._destination is not None
        if self._is_folder:
            base = self._destination / (image.stem + mark)
        else:
            base = self._destination.with_name(self._destination.stem + mark)
        path, number = base.with_name(base.name + self.suffix), 2
        while path in self._taken:
            path, number = base.with_name(f"{base.name}-{number}{self.suffix}"), number + 1
        self._taken.add(path)
        return path

    def write(self, image: Path, result: ImageExplanation) -> list[Path]:
        """Writes the overlay of each explanation; several are told apart by their class."""
        paths = []
        several = len(result.explanations) > 1
        several_layers = len({one.layer for one in result.explanations}) > 1
        for explanation in result.explanations:
            mark = f"-{explanation.index}-{_plain(explanation.name)}" if several else ""
            if several_layers:
                mark += f"-{_plain(explanation.layer)}"
            path = self.path_for(image, mark)
            path.write_bytes(explanation.overlay)
            paths.append(path)
        return paths


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _as_json(path: Path, result: ImageExplanation) -> dict[str, Any]:
    stats = result.stats
    return {
        "path": str(path),
        "model": result.model,
        "preprocessing": result.preprocessing,
        "preprocessing_declared": result.preprocessing_declared,
        "predictions": [
            {"index": one.index, "name": one.name, "probability": one.probability}
            for one in result.predictions
        ],
        "explanations": [
            {
                "index": one.index,
                "name": one.name,
                "score": one.score,
                "layer": one.layer,
                "method": one.method,
                "raw_min": one.raw_min,
                "raw_max": one.raw_max,
                "degenerate": one.degenerate,
                "score_type": one.score_type,
                "saturated": one.saturated,
                "against": one.against,
            }
            for one in result.explanations
        ],
        "stats": {
            "decode_us": stats.decode_us,
            "queue_us": stats.queue_us,
            "compile_us": stats.compile_us,
            "compute_us": stats.compute_us,
            "render_us": stats.render_us,
            "batch_size": stats.batch_size,
            "padded_batch_size": stats.padded_batch_size,
            "pass_count": stats.pass_count,
        },
    }


def _save_numbers(path: Path, result: ImageExplanation) -> None:
    assert result.logits is not None  # they were asked for
    np.savez_compressed(
        path,
        classes=np.array([one.index for one in result.explanations], np.int32),
        heatmaps=np.stack([one.heatmap for one in result.explanations]),
        logits=result.logits,
    )


def _print(path: Path, result: ImageExplanation, written: Sequence[Path]) -> None:
    size = f"{result.image_width} x {result.image_height}"
    click.echo(f"{path} ({size}), {result.model}{_preprocessing(result)}")
    for prediction in result.predictions:
        click.echo(f"  {prediction.probability:7.2%}  {prediction.index:>4}  {prediction.name}")
    for explanation in result.explanations:
        notes = " (degenerate: nothing here speaks for it)" if explanation.degenerate else ""
        if explanation.saturated:
            notes += " (saturated: its gradient is lost in rounding; explain the logit)"
        rather = f" rather than {explanation.against_name}" if explanation.against_name else ""
        click.echo(
            f"  explained {explanation.index} {explanation.name}{rather}, {explanation.score_type} "
            f"{explanation.score:.3f}, by {explanation.method} at {explanation.layer}{notes}"
        )
    for file in written:
        click.echo(f"  wrote {file}")
    stats = result.stats
    passes = f", {stats.pass_count} passes" if stats.pass_count > 1 else ""
    compiling = f"compile {stats.compile_us / 1e3:.1f} ms, " if stats.compile_us else ""
    click.echo(
        f"  time: decode {stats.decode_us / 1e3:.1f} ms, queue {stats.queue_us / 1e3:.1f} ms, "
        f"{compiling}compute {stats.compute_us / 1e3:.1f} ms, "
        f"render {stats.render_us / 1e3:.1f} ms (batch of {stats.batch_size}{passes})"
    )


def _preprocessing(result: ImageExplanation) -> str:
    """Says how the pixels were scaled; nothing if an older server does not say."""
    if not result.preprocessing:
        return ""
    origin = "" if result.preprocessing_declared else " (by default)"
    return f", preprocessing {result.preprocessing}{origin}"


def _show_likely_answers(path: Path, client: "LocalClient", resize: str) -> None:
    """Shows on stderr what each likely preprocessing answers, if it is in doubt which is right."""
    answers = client.predict_by_likely_preprocessing(path, resize)
    if answers:
        click.echo(f"What the model answers for {path} by each of them:", err=True)
    for one in answers:
        click.echo(
            f"  --preprocessing {one.preprocessing:5}  {one.probability:7.2%}  {one.index:>4}  "
            f"{one.name}",
            err=True,
        )


def _report_failure(path: Path, error: Exception | None, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"path": str(path), "error": error_as_json(error)}))
    click.echo(f"Error: {shown(path)}: {readable(str(error))}", file=sys.stderr)
