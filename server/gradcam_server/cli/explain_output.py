"""The output of ``gradcam explain``: text, JSON, overlays and arrays."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from gradcam_client import ImageExplanation
from gradcam_client.image_files import shown
from gradcam_server.cli.common import ImageSource, error_as_json
from gradcam_server.cli.errors import readable
from gradcam_server.cli.progress import say

_PREDICTION = ("index", "name", "probability")
_EXPLANATION = (
    *("index", "name", "score", "layer", "method", "raw_min", "raw_max", "degenerate"),
    *("score_type", "saturated", "against"),
)
_STATS = (
    *("decode_us", "queue_us", "compile_us", "compute_us", "render_us"),
    *("batch_size", "padded_batch_size", "pass_count"),
)


class Outputs:
    """The files for the images' results: one file, or a folder for several images.

    Args:
        destination: The file or folder; None if nothing is written.
        count: Number of images.
        suffixes: The allowed suffixes of a file.
        suffix: The suffix of files in a folder.
        option: The option, for errors.

    Raises:
        click.UsageError: A file is given for several images, or has another suffix.
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
        """Writes the overlays of an image; names of several overlays hold class and layer."""
        paths = []
        several = len(result.explanations) > 1
        several_layers = len({explanation.layer for explanation in result.explanations}) > 1
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


def result_as_json(image: ImageSource, result: ImageExplanation) -> dict[str, Any]:
    """Returns a result as JSON values, without its maps."""
    return {
        "path": str(image),
        "model": result.model,
        "preprocessing": result.preprocessing,
        "preprocessing_declared": result.preprocessing_declared,
        "predictions": [_fields(prediction, _PREDICTION) for prediction in result.predictions],
        "explanations": [_fields(explanation, _EXPLANATION) for explanation in result.explanations],
        "stats": _fields(result.stats, _STATS),
    }


def _fields(source: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def save_arrays(path: Path, result: ImageExplanation) -> None:
    """Writes an .npz file with the arrays ``classes``, ``heatmaps`` and ``logits``."""
    assert result.logits is not None  # the request asks for them
    explanations = result.explanations
    np.savez_compressed(
        path,
        classes=np.array([explanation.index for explanation in explanations], np.int32),
        heatmaps=np.stack([explanation.heatmap for explanation in explanations]),
        logits=result.logits,
    )


def print_result(image: ImageSource, result: ImageExplanation, written: Sequence[Path]) -> None:
    """Prints predictions, explanations, ``written`` files and times of an image."""
    size = f"{result.image_width} x {result.image_height}"
    click.echo(f"{image} ({size}), {result.model}{_preprocessing(result)}")
    for prediction in result.predictions:
        click.echo(f"  {prediction.probability:7.2%}  {prediction.index:>4}  {prediction.name}")
    for explanation in result.explanations:
        notes = (
            " (the map is all zero: no evidence for this class at this layer)"
            if explanation.degenerate
            else ""
        )
        if explanation.saturated:
            notes += " (saturated: the gradient is lost in rounding; use --score logit)"
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
    """Returns how the pixels were scaled; empty if an older server does not say."""
    if not result.preprocessing:
        return ""
    origin = "" if result.preprocessing_declared else " (by default)"
    return f", preprocessing {result.preprocessing}{origin}"


def report_failure(image: ImageSource, error: Exception | None, as_json: bool) -> None:
    """Prints the error of an image to stderr, and with ``as_json`` to stdout as JSON, too."""
    if as_json:
        click.echo(json.dumps({"path": str(image), "error": error_as_json(error)}))
    name, text = shown(str(image)), readable(str(error))
    is_named = text.startswith(name.partition("?")[0])  # as by errors of downloads
    say(f"Error: {text}" if is_named else f"Error: {name}: {text}")
