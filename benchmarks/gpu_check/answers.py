"""Part (a): are the answers of the graphs right on this device?

Every graph of ``lite0`` explains three photographs, and is compared with answers in float64 that
were computed by Keras (see ``bundle``). Then ResNet50 in bfloat16 is compared with float32.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from gpu_check.part import Part, parse_part
from gpu_check.weights import draw_weights
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import NO_CLASS
from gradcam_server.domain.warm import warm_option
from gradcam_server.exports.manifest import WEIGHTS, Manifest, read_manifest
from gradcam_server.exports.stablehlo_graphs import StableHloGraphs
from gradcam_server.graphs.executable import Array, Executable

# What is right: float32 by the difference of maps, the rounded precisions by correlation.
MAX_MAP_DIFFERENCE = 1e-4
MIN_CORRELATION = {"tf32": 0.999, "bfloat16": 0.95}

_MAX_THREADS = 8

Float64 = NDArray[np.float64]


def compare(
    precision: str, logits: Array, maps: Array, true_logits: Array, true_maps: Array
) -> dict[str, Any]:
    """Compares answers with true ones.

    Args:
        precision: ``float32``, ``tf32`` or ``bfloat16``, which decides what is right.
        logits: The logits, shape (N, classes).
        maps: The maps, shape (N, targets, h, w).
        true_logits: The true logits, of the same shape.
        true_maps: The true maps, of the same shape.

    Returns:
        The largest difference of a logit, as a share of the largest logit of all; the largest
        difference of a map's value, as a share of the largest value of its map; the least
        correlation of a map; whether each image has the true top class; and whether that is right.
        Values that are not finite are never right.
    """
    ours, expected = _rows(maps), _rows(true_maps)
    largest = np.abs(expected).max(axis=1)
    same_top = bool((logits.argmax(axis=1) == true_logits.argmax(axis=1)).all())
    with np.errstate(invalid="ignore"):  # of values that are not finite
        map_difference = np.abs(ours - expected).max(axis=1) / np.where(largest > 0, largest, 1.0)
        logit_difference = np.abs(logits - true_logits).max() / np.abs(true_logits).max()
        correlations = list(map(_correlation, ours, expected))
    found = {
        "logit_difference": float(logit_difference),
        "map_difference": float(map_difference.max()),
        "min_correlation": float(np.min(correlations)),
        "same_top_class": same_top,
    }
    if precision == "float32":
        is_near = found["map_difference"] <= MAX_MAP_DIFFERENCE
    else:
        is_near = found["min_correlation"] >= MIN_CORRELATION[precision]
    # Random weights, which bfloat16 is compared by, have no clear top class.
    has_top = same_top or precision == "bfloat16"
    is_finite = bool(np.isfinite(logits).all() and np.isfinite(maps).all())
    return {**found, "ok": is_near and has_top and is_finite}


def _rows(maps: Array) -> Float64:
    return np.asarray(maps, np.float64).reshape(-1, int(np.prod(maps.shape[-2:])))


def _correlation(ours: Float64, expected: Float64) -> float:
    """Returns Pearson's correlation; of constants, whether both are."""
    deviations = (ours - ours.mean(), expected - expected.mean())
    norms = [float(np.linalg.norm(one)) for one in deviations]
    if not all(norms):
        return float(norms[0] == norms[1])
    return float(deviations[0] @ deviations[1] / (norms[0] * norms[1]))


class References:
    """The answers in float64, and the images that they are of.

    Args:
        path: The file that ``bundle`` wrote.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as stored:
            self._stored = {name: stored[name] for name in stored.files}
        self.images: NDArray[np.uint8] = self._stored["images"]
        self.classes: NDArray[np.int32] = self._stored["classes"]
        self.logits: Float64 = self._stored["logits"]

    def maps(self, number: int) -> Float64:
        """Returns the maps of a graph by its place in the manifest, (images, targets, h, w)."""
        maps: Float64 = self._stored[f"maps_{number}"]
        return maps


def run_repeated(
    executable: Executable, batch_size: int, images: Array, classes: Array
) -> tuple[Array, Array, NDArray[np.intp]]:
    """Runs all images in batches of one size, the first images again in the last batch.

    Returns:
        Logits, maps, and the number of the image of each row.
    """
    count = -(-len(images) // batch_size) * batch_size
    rows = np.arange(count) % len(images)
    logits, maps = [], []
    for batch in rows.reshape(-1, batch_size):
        against = np.full(classes[batch].shape, NO_CLASS, np.int32)
        outputs = executable(images[batch], classes[batch], against)
        logits.append(outputs[0])
        maps.append(outputs[4])
    return np.concatenate(logits), np.concatenate(maps), rows


def check_graph(
    graphs: StableHloGraphs,
    manifest: Manifest,
    number: int,
    references: References,
    precision: str,
) -> list[dict[str, Any]]:
    """Compiles and compares a graph at each of its batch sizes.

    Args:
        graphs: The graphs of an export.
        manifest: Its manifest.
        number: The graph's place in the manifest.
        references: The true answers.
        precision: ``float32`` or ``tf32``, for which JAX is set.

    Returns:
        A row for each batch size.
    """
    graph = manifest.graphs[number]
    sizes, targets = sorted(graph.modules), graph.key.max_targets
    (executables,) = graphs.load(number, sizes).executables
    rows = []
    for size in sizes:
        logits, maps, numbers = run_repeated(
            *(executables[size][0], size),
            *(references.images, references.classes[:, :targets]),
        )
        found = compare(
            *(precision, logits, maps),
            *(references.logits[numbers], references.maps(number)[numbers, :targets]),
        )
        rows.append({**_title(manifest, number, precision, size), **found})
    return rows


def _title(manifest: Manifest, number: int, precision: str, batch_size: int) -> dict[str, Any]:
    return {
        "kind": "answers",
        "model": manifest.name,
        "graph": warm_option(manifest.graphs[number].key),
        "targets": manifest.graphs[number].key.max_targets,
        "precision": precision,
        "batch_size": batch_size,
    }


def _open(folder: Path, part: Part, cache: str) -> tuple[StableHloGraphs, Manifest]:
    manifest = read_manifest(folder)
    config = ServeConfig(device=(part.device,), cache_dir=cache)
    return StableHloGraphs(folder, manifest, config), manifest


def _check_graphs(
    part: Part,
    opened: tuple[StableHloGraphs, Manifest],
    references: References,
    precision: str,
) -> None:
    """Checks all graphs, as many at a time as there are cores to compile them."""
    graphs, manifest = opened
    numbers = range(len(manifest.graphs))

    def check(number: int) -> list[dict[str, Any]] | None:
        if part.seconds_left <= 0:
            return None
        try:
            return check_graph(graphs, manifest, number, references, precision)
        except Exception as error:  # noqa: BLE001 - a row, and the next graph
            failed = {"error": f"{type(error).__name__}: {error}"[:500], "ok": False}
            return [{**_title(manifest, number, precision, 0), **failed}]

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        running = {pool.submit(check, number): number for number in numbers}
        for done in as_completed(running):
            if (rows := done.result()) is None:
                key = manifest.graphs[running[done]].key
                part.note(f"no time was left for {warm_option(key)} in {precision}")
            for row in rows or ():
                part.add(row)


def _compare_precisions(part: Part, references: References, cache: str) -> None:
    """Compares ResNet50's maps in bfloat16 with float32's, by equal weights."""
    if part.seconds_left <= 0:
        part.note("no time was left for bfloat16")
        return
    seed = json.loads((part.bundle / "bundle.json").read_text("utf-8"))["seed"]
    answers = {}
    for precision in ("float32", "bfloat16"):
        folder = part.bundle / f"resnet50-{precision}"
        if not (folder / WEIGHTS).exists():
            draw_weights(folder, seed)
        graphs, manifest = _open(folder, part, cache)
        (executables,) = graphs.load(0, (1,)).executables
        answers[precision] = run_repeated(
            executables[1][0], 1, references.images, references.classes
        )
    logits, maps, _ = answers["bfloat16"]
    true_logits, true_maps, _ = answers["float32"]
    found = compare("bfloat16", logits, maps, true_logits, true_maps)
    part.add({**_title(manifest, 0, "bfloat16", 1), **found})


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """A context in which modules are loaded for products in TF32, or in true float32."""
    name = "jax_default_matmul_precision"
    before = getattr(jax.config, name)
    jax.config.update(name, "tensorfloat32" if precision == "tf32" else None)
    try:
        yield
    finally:
        jax.config.update(name, before)


def main(given: Sequence[str] | None = None) -> None:
    part = parse_part(__doc__, given)
    references = References(part.bundle / "lite0_reference.npz")
    # A cache of its own: no other part has these graphs, and the start is measured elsewhere.
    with tempfile.TemporaryDirectory() as cache:
        opened = _open(part.bundle / "lite0", part, cache)
        with products_in("float32"):
            _check_graphs(part, opened, references, "float32")
            _compare_precisions(part, references, cache)
        if part.platform == "cpu":
            part.note("TF32 is of GPUs alone: not checked on this CPU")
            return
        with products_in("tf32"):
            _check_graphs(part, opened, references, "tf32")


if __name__ == "__main__":
    main()
