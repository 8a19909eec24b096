"""Draws the weights of an export that was copied without them. Free of TensorFlow.

The types of the weights are in the modules. Equal seeds give equal weights; a weight that two
exports hold in two precisions is drawn once and rounded, so that their answers can be compared.
"""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from gradcam_server.exports.files import hash_file
from gradcam_server.exports.manifest import MANIFEST, WEIGHTS
from gradcam_server.graphs.compilers.pjrt_modules import TensorType, read_signature
from gradcam_server.graphs.executable import Array

PREDICT = "predict.json"
"""The names of the weights of the modules that predict alone, beside the export's own files."""

# Of the values around 1 and around 0, for the weights with one axis.
_SPREAD = 0.1
_AROUND_ONE = {"gamma", "moving_variance"}


def predict_module(batch_size: int) -> str:
    """Returns the file of the module that predicts alone, for a batch size."""
    return f"predict_{batch_size}.mlirbc"


def draw_weights(folder: Path, seed: int) -> None:
    """Writes the weights of an export for XLA, and their size and hash in its manifest.

    Args:
        folder: The export; the weights that it may have are replaced.
        seed: The seed.

    Raises:
        ValueError: A weight is a constant of the model, which cannot be drawn.
        OSError: A file cannot be read or written.
        ModuleError: A module cannot be read.
    """
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    kinds: dict[str, TensorType] = {}
    for names, module in _modules(folder, manifest):
        signature = read_signature((folder / module).read_bytes())
        kinds.update(zip(names, signature.weights, strict=True))
    path = folder / WEIGHTS
    path.write_bytes(save({name: _draw(name, kind, seed) for name, kind in kinds.items()}))
    manifest["sizes"][WEIGHTS] = path.stat().st_size
    manifest["sha256"][WEIGHTS] = hash_file(path)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _modules(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[list[str], str]]:
    """Yields the names of the weights of each graph, and one of its modules."""
    for graph in manifest["graphs"]:
        yield graph["weights"], next(iter(graph["modules"].values()))
    if (path := folder / PREDICT).exists():
        module = min(folder.glob(predict_module(0).replace("0", "*")))
        yield json.loads(path.read_text("utf-8"))["weights"], module.name


def _draw(name: str, kind: TensorType, seed: int) -> Array:
    """Draws kernels as LeCun et al. 1998, by fan-in; biases are small."""
    variable, _, number = name.replace(f":{kind.dtype.name}", ":", 1).partition(":")
    if variable == "constant":
        raise ValueError(f"{name} is a constant of the model, and cannot be drawn")
    # Not Python's hash, which differs from process to process.
    generator = np.random.default_rng([seed, zlib.crc32(f"{variable}{number}".encode())])
    values = generator.standard_normal(kind.shape, np.float32)
    if len(kind.shape) < 2:
        values = values * np.float32(_SPREAD)
        values += np.float32(variable.rpartition("/")[2] in _AROUND_ONE)
    else:
        is_depthwise = kind.shape[-1] == 1
        inputs = math.prod(kind.shape[:2] if is_depthwise else kind.shape[:-1])
        values = values / np.float32(math.sqrt(inputs))
    return values.astype(kind.dtype)
