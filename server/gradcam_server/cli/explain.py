"""``gradcam explain``."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gradcam_client import (
    Client,
    GradCamError,
    HeatmapForm,
    ImageExplanation,
    OverlayJpeg,
    OverlayPng,
    Raw,
)
from gradcam_client.requests import COLORMAPS, RESIZE_MODES
from gradcam_server.cli.common import errors_for_people, model_options

_OVERLAYS = {".jpg": OverlayJpeg, ".jpeg": OverlayJpeg, ".png": OverlayPng}
_LOCAL_BATCH_SIZES = (1, 4)


@click.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=Path)
@click.option("--server", metavar="HOST:PORT", help="Ask this server; else explain in-process.")
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
    "--layer", default="", show_default=False, help="Explain this layer (see gradcam layers)."
)
@click.option(
    "--model",
    default="",
    show_default=False,
    help="Name of the model; resnet50, or the server's first, when not given.",
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
@model_options
def explain(
    images: Sequence[Path],
    server: str | None,
    classes: Sequence[str],
    top_k: int | None,
    output: Path | None,
    npz: Path | None,
    as_json: bool,
    model: str,
    weights: str,
    seed: int,
    colormap: str,
    alpha: float,
    predictions: int,
    **options: Any,
) -> None:
    """Predict what is in images, and see where the model looked.

    \b
    gradcam explain cat.jpg -o out.jpg
    gradcam explain cat.jpg --class tabby --class "Egyptian cat" -o cats/
    gradcam explain photos/*.jpg --server localhost:50051 -o overlays/ --json

    An image that fails is reported, the others go on, and the exit status is 1.
    """  # noqa: D301 - click reads the character \b
    if classes and top_k:
        raise click.UsageError("--class and --top-k exclude each other")
    targets = [int(name) if name.isdecimal() else name for name in classes]
    overlays = Outputs(output, len(images), tuple(_OVERLAYS), ".jpg", "-o")
    numbers = Outputs(npz, len(images), (".npz",), ".npz", "--npz")
    heatmaps: list[HeatmapForm] = [Raw()]
    if output:
        heatmaps.append(_OVERLAYS[overlays.suffix](alpha=alpha, colormap=colormap))
    failed = False
    with (
        errors_for_people(),
        _client(server, model, weights, seed, len(images), len(targets) or top_k or 1) as client,
        _progress(len(images), hidden=as_json) as progress,
    ):
        outcomes = client.explain_stream(
            images,
            model=model if server else "",
            classes=targets,
            top_k=top_k,
            heatmaps=heatmaps,
            prediction_count=predictions,
            include_logits=bool(npz),
            **options,
        )
        for path, outcome in zip(images, outcomes, strict=True):
            progress.advance()
            if outcome.result is None:
                failed = True
                _report_failure(path, outcome.error, as_json)
                continue
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
        for explanation in result.explanations:
            several = len(result.explanations) > 1
            name = "".join(c if c.isalnum() else "_" for c in explanation.name)
            path = self.path_for(image, f"-{explanation.index}-{name}" if several else "")
            path.write_bytes(explanation.overlay)
            paths.append(path)
        return paths


@contextmanager
def _client(
    server: str | None, model: str, weights: str, seed: int, image_count: int, target_count: int
) -> Iterator[Any]:
    if server:
        with Client(server) as client:
            yield client
        return
    from gradcam_server.config import ServeConfig
    from gradcam_server.local import LocalClient
    from gradcam_server.models import DEFAULT_MODEL

    config = ServeConfig(
        model=(model or DEFAULT_MODEL,),
        weights=(weights,),
        seed=seed,
        max_targets=target_count,
        batch_sizes=_LOCAL_BATCH_SIZES if image_count > 1 else (1,),
    )
    with LocalClient(config) as local:
        yield local


class _Bar:
    def __init__(self, progress: Progress, count: int) -> None:
        self._progress, self._task = progress, progress.add_task("Explaining", total=count)

    def advance(self) -> None:
        self._progress.advance(self._task)


@contextmanager
def _progress(count: int, *, hidden: bool) -> Iterator[_Bar]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=hidden or count < 2) as progress:
        yield _Bar(progress, count)


def _as_json(path: Path, result: ImageExplanation) -> dict[str, Any]:
    stats = result.stats
    return {
        "path": str(path),
        "model": result.model,
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
            }
            for one in result.explanations
        ],
        "stats": {
            "decode_us": stats.decode_us,
            "queue_us": stats.queue_us,
            "compute_us": stats.compute_us,
            "render_us": stats.render_us,
            "batch_size": stats.batch_size,
            "padded_batch_size": stats.padded_batch_size,
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
    click.echo(f"{path} ({result.image_width} x {result.image_height}), {result.model}")
    for prediction in result.predictions:
        click.echo(f"  {prediction.probability:7.2%}  {prediction.index:>4}  {prediction.name}")
    for explanation in result.explanations:
        nothing = " (degenerate: nothing here speaks for it)" if explanation.degenerate else ""
        click.echo(
            f"  explained {explanation.index} {explanation.name}, score {explanation.score:.3f}, "
            f"by {explanation.method} at {explanation.layer}{nothing}"
        )
    for file in written:
        click.echo(f"  wrote {file}")
    stats = result.stats
    click.echo(
        f"  time: decode {stats.decode_us / 1e3:.1f} ms, queue {stats.queue_us / 1e3:.1f} ms, "
        f"compute {stats.compute_us / 1e3:.1f} ms, render {stats.render_us / 1e3:.1f} ms "
        f"(batch of {stats.batch_size})"
    )


def _report_failure(path: Path, error: Exception | None, as_json: bool) -> None:
    code = error.code.name if isinstance(error, GradCamError) else type(error).__name__
    if as_json:
        click.echo(json.dumps({"path": str(path), "error": {"code": code, "message": str(error)}}))
    click.echo(f"Error: {path}: {error}", file=sys.stderr)
