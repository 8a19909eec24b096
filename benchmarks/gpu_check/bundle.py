"""Writes the folder that ``run`` checks on a GPU machine without network and without TensorFlow.

Usage: python -m gpu_check.bundle FOLDER, on a machine with TensorFlow. The folder is replaced.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpu_check.weights import PREDICT, predict_module
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.options import GraphFormat, Precision
from gradcam_server.domain.registry import ONE_PASS_METHODS
from gradcam_server.domain.requests import Method, ResizeMode, ScoreType
from gradcam_server.engine.engine import Engine
from gradcam_server.engine.sources.model import ModelSource
from gradcam_server.exports.manifest import WEIGHTS
from gradcam_server.exports.writer import write
from gradcam_server.graphs.compilers.pjrt import Weights, convert
from gradcam_server.graphs.executable import CompilationCounter
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.images.decode import decode_image
from gradcam_server.images.geometry import fit
from gradcam_server.methods.one_pass import CONTRASTS, METHODS
from gradcam_server.models import embedded
from oracles.precise import in_float64

SEED = 0
LITE0_SIZES = (1, 8)
RESNET50_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREDICT_SIZES = (1, 128)
TARGETS = 5

# All methods of one pass explain the logit. The probability changes only the gradient that they
# take: here are the plain one, one that divides by the gradient, and one that contrasts scores.
BY_PROBABILITY = (Method.GRAD_CAM, Method.GRAD_CAM_PLUS_PLUS, Method.FINER_CAM)

# What gradcam-server needs and GPU machines with JAX and PyTorch have rarely.
PACKAGES = (
    *("grpcio-health-checking", "grpcio-status", "grpcio-reflection"),
    *("googleapis-common-protos", "cykooz-resizer"),
)
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "any")

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_MAX_PIXELS = 100_000_000

Float64 = NDArray[np.float64]


class PredictionGraph(ExplanationGraph):
    """The same network as a graph that only predicts: its logits and probabilities."""

    def explain(
        self,
        images: tf.Tensor,
        classes: tf.Tensor,  # noqa: ARG002 - stays an input of the module
        against: tf.Tensor,  # noqa: ARG002
        precision: Precision = Precision.FLOAT32,
    ) -> tuple[tf.Tensor, ...]:
        """Returns the logits and probabilities, (B, classes); see ``ExplanationGraph``."""
        _, logits = self.run_network(tf.cast(images, tf.float32), [], precision)
        return logits, tf.nn.softmax(logits)


def write_bundle(folder: Path) -> None:
    """Writes the whole folder, which must not exist."""
    folder.mkdir(parents=True)
    copy_code(folder)
    photographs = sorted((_ROOT / "examples" / "images").glob("*.jpg"))
    (folder / "photographs").mkdir()
    for path in photographs:
        shutil.copy(path, folder / "photographs")
    with _step("wheels"):
        make_wheels(folder / "wheels")
    with _step("EfficientNet-Lite0"):
        keys = export_lite0(folder / "lite0")
    with _step("the true answers"):
        write_reference(folder / "lite0_reference.npz", keys, photographs)
    with _step("ResNet50"):
        export_resnet50(folder)
    about = {
        "format": 1,
        "gradcam_server": metadata.version("gradcam-server"),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": SEED,
    }
    (folder / "bundle.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")


@contextmanager
def _step(name: str) -> Iterator[None]:
    began = perf_counter()
    yield
    print(f"{perf_counter() - began:6.1f} s   {name}", flush=True)


def copy_code(folder: Path) -> None:
    """Copies this package without this module; ``run.py`` goes beside it."""
    package = folder / _HERE.name
    package.mkdir()
    for path in sorted(_HERE.glob("*.py")):
        if path.name != Path(__file__).name:
            shutil.copy(path, folder if path.name == "run.py" else package)


def make_wheels(folder: Path) -> None:
    """Builds the wheel of this tree, and downloads those that GPU machines lack."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(_ROOT)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    for python in PYTHONS:
        download = [
            *(*pip, "download", "--only-binary=:all:", "--no-deps", "--dest", str(folder)),
            *("--python-version", python, "--implementation", "cp", *platforms),
            *("-c", str(_ROOT / "constraints.txt"), *PACKAGES),
        ]
        subprocess.run(download, check=True)


def _open(model: str, **options: Any) -> tuple[ModelSource, Sequence[GraphKey]]:
    """Loads a built-in model; returns it, and the graphs to export."""
    engine = Engine(ServeConfig(model=(model,), max_targets=TARGETS, seed=SEED, **options))
    (source,) = engine.sources.values()
    assert isinstance(source, ModelSource)
    return source, engine.warm_keys()


def _export(
    folder: Path,
    source: ModelSource,
    keys: Sequence[GraphKey],
    sizes: Sequence[int],
    precision: Precision = Precision.FLOAT32,
) -> None:
    write(
        *(source.loaded, source.served, keys, sizes, folder, precision),
        graph_format=GraphFormat.STABLEHLO,
    )


def _warm_options() -> list[str]:
    return [
        *(f"{method}:{ScoreType.LOGIT}" for method in ONE_PASS_METHODS),
        *(f"{method}:{ScoreType.PROBABILITY}" for method in BY_PROBABILITY),
    ]


def export_lite0(folder: Path) -> Sequence[GraphKey]:
    """Exports EfficientNet-Lite0 with its trained weights; returns the graphs in their order."""
    source, keys = _open("efficientnet-lite0", warm=tuple(_warm_options()))
    _export(folder, source, keys, LITE0_SIZES)
    return keys


def export_resnet50(folder: Path) -> None:
    """Exports ResNet50 without weights, in two precisions; and modules that predict alone."""
    source, keys = _open("resnet50", weights=("random",))
    for precision in (Precision.FLOAT32, Precision.BFLOAT16):
        export = folder / f"resnet50-{precision}"
        _export(export, source, keys, RESNET50_SIZES, precision)
        (export / WEIGHTS).unlink()
        graph, weights = PredictionGraph(source.loaded, keys[0], CompilationCounter()), Weights()
        for size in PREDICT_SIZES:
            converted = convert(graph, precision, size, weights)
            (export / predict_module(size)).write_bytes(converted.artifact)
        names = {"weights": converted.weights}
        (export / PREDICT).write_text(json.dumps(names, indent=1) + "\n", "utf-8")


def write_reference(path: Path, keys: Sequence[GraphKey], photographs: Iterable[Path]) -> None:
    """Writes true answers to photographs; see ``explain_precisely``.

    Args:
        path: The file: ``images``, uint8, (N, H, W, 3); ``classes``, the best by the true logits,
            int32, (N, 5); ``logits`` and ``probabilities``, float64, (N, classes); and for each
            graph ``maps_NUMBER``, float64, (N, 5, h, w).
        keys: The graphs of the export of EfficientNet-Lite0, in their order.
        photographs: The photographs.
    """
    with in_float64():
        model, _ = embedded.build("imagenet")
        images = np.stack(
            [
                fit(
                    decode_image(one.read_bytes(), _MAX_PIXELS),
                    model.input_shape[1:3],
                    ResizeMode.STRETCH,
                )[0]
                for one in photographs
            ]
        )
        answers: dict[str, Any] = {**explain_precisely(model, keys, images), "images": images}
    np.savez_compressed(path, **answers)


def explain_precisely(
    model: keras.Model, keys: Sequence[GraphKey], images: NDArray[np.uint8]
) -> Mapping[str, NDArray[Any]]:
    """Explains images in float64, apart from the code that makes the graphs.

    Keras calls the layers of the model as they are: nothing is folded, no gradient is read from
    the head. Derivatives are those of an eager gradient tape, of the whole score by the
    activation. Only the formulas of ``methods.one_pass`` are shared with the graphs.

    Args:
        model: EfficientNet-Lite0 in float64.
        keys: The graphs, all of one and the same layer.
        images: The images, (N, H, W, 3).

    Returns:
        The arrays of ``write_reference``, without the images.
    """
    ((name,),) = {key.layers for key in keys}
    layer = model.get_layer(name).output
    inputs = (images.astype(np.float64) - 127) / 128
    activation = keras.Model(model.inputs, layer)([inputs], training=False)
    rest = keras.Model([layer], model.output)
    found: dict[str, NDArray[Any]] = {}
    for number, key in enumerate(keys):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(activation)
            logits = rest([activation], training=False)
            probabilities = tf.nn.softmax(logits)
            classes = tf.math.top_k(logits, TARGETS).indices
            values = logits if key.score_type is ScoreType.LOGIT else probabilities
            zeros = tf.zeros_like(classes)
            scores = tf.gather(values, classes, batch_dims=1)
            for others, weights in CONTRASTS[key.method](
                logits, classes, zeros, tf.cast(zeros, logits.dtype)
            ):
                scores -= weights * tf.gather(values, others, batch_dims=1)
            of_targets = tf.unstack(scores, axis=1)
        # Images are independent: the gradient of a sum over the batch is each image's own.
        maps = [_map(key.method, activation, tape.gradient(one, activation)) for one in of_targets]
        assert activation.dtype == logits.dtype == maps[0].dtype == tf.float64
        found[f"maps_{number}"] = np.stack(maps, axis=1)
    return {
        **found,
        "classes": classes.numpy(),
        "logits": logits.numpy(),
        "probabilities": probabilities.numpy(),
    }


def _map(method: Method, activation: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    if method is Method.EIGEN_CAM:  # EigenGrad-CAM with a gradient of 1, here of float64
        return METHODS[Method.EIGEN_GRAD_CAM](activation, tf.ones([], activation.dtype))
    return METHODS[method](activation, gradient)


def _print_sizes(folder: Path) -> None:
    total = 0
    for path in sorted(folder.iterdir()):
        files = path.rglob("*") if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files if file.is_file())
        total += size
        print(f"{size / 1e6:8.2f} MB  {path.name}")
    print(f"{total / 1e6:8.2f} MB  {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if folder.exists():
        if not (folder / _HERE.name).is_dir():
            parser.error(f"{folder} is not a folder of this command: choose another")
        shutil.rmtree(folder)
    write_bundle(folder)
    _print_sizes(folder)


if __name__ == "__main__":
    main()
