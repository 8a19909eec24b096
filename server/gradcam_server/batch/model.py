"""Identifies the model of a job, by its options and the content of its files."""

import hashlib
from pathlib import Path
from typing import Any

from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.exports.manifest import is_export

# Sizes to compile; those above the fastest per image are not used.
BATCH_SIZES = (1, 4, 16)
_CHUNK_BYTES = 1 << 20


def identity(config: ServeConfig) -> dict[str, Any]:
    """Returns all that decides a model's answers: names, options, and hashes of its files.

    Settings that affect only the speed (compiler, batch sizes, devices) are left out: a job may be
    resumed with others.

    Raises:
        StartupError: An option is wrong.
    """
    (spec,) = model_specs(config)
    names = {
        "model": spec.id,
        "source": spec.source,
        "weights": spec.weights,
        "seed": spec.seed,
        "preprocessing": _preprocessing(spec),
        "outputs": None if spec.outputs is None else str(spec.outputs),
        "labels": None if spec.labels is None else str(spec.labels),
        "input_size": None if spec.input_size is None else list(spec.input_size),
        "precision": str(config.precision),
        "max_image_pixels": config.max_image_pixels,
        "reduced_decode": config.reduced_decode,
    }
    return {
        name: _content(value)
        if name in ("weights", "labels") or (name == "source" and not spec.built_in)
        else value
        for name, value in names.items()
    }


def _preprocessing(spec: ModelSpec) -> str | None:
    """Returns the preprocessing in effect: a file's default is the same whether declared or not."""
    if spec.preprocessing is None and (spec.built_in or is_export(Path(spec.source))):
        return None  # the model has its own
    return str(spec.preprocessing or Preprocessing.NONE)


def _content(value: Any) -> Any:
    """Returns a hash of the file or folder that ``value`` names; any other value as it is."""
    if not isinstance(value, str) or not Path(value).exists():
        return value
    root, digest = Path(value), hashlib.sha256()
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    for path in files:
        digest.update(str(path.relative_to(root)).encode())
        with path.open("rb") as file:
            while data := file.read(_CHUNK_BYTES):
                digest.update(data)
    return f"sha256:{digest.hexdigest()}"
