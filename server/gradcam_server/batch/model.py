"""Which model a job's answers come from: the same one only if its files are."""

import hashlib
from pathlib import Path
from typing import Any

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.exports.manifest import is_export

# What a job tries; it uses those that pay.
BATCH_SIZES = (1, 4, 16)
_CHUNK_BYTES = 1 << 20


def identity(config: ServeConfig) -> dict[str, Any]:
    """Returns what decides a model's answers: names, options, and what is in its files.

    What only decides how soon they come (the compiler, batch sizes, devices) is not there: a job
    may go on with others.

    Raises:
        StartupError: An option is wrong.
    """
    (spec,) = config.model_specs()
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
    """Returns what decides the answers; a file's default is the same whether declared or not."""
    if spec.preprocessing is None and (spec.built_in or is_export(Path(spec.source))):
        return None  # The model's own.
    return str(spec.preprocessing or Preprocessing.NONE)


def _content(value: Any) -> Any:
    """Returns a hash of a file or folder, or what is not the name of one as it is."""
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
