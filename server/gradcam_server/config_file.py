"""Settings from a TOML file: the keys are those of ``ServeConfig``, and tables of models."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcam_server.config import ServeConfig
from gradcam_server.errors import StartupError
from gradcam_server.models import model_id

_OF_MODELS = ("weights", "preprocessing", "labels", "input_size")
_FILES = ("tls_certificate", "tls_key", "tls_client_ca", "token_file")
_MODEL_KEYS = ("name", "version", "path", *_OF_MODELS)


def read_config_file(path: Path) -> dict[str, Any]:
    """Reads a file.

    Such as::

        port = 50051
        batch_sizes = [1, 8, 32]

        [[models]]
        name = "animals"
        version = "2"
        path = "animals.keras"
        labels = "animals.txt"

    Relative paths are relative to the file.

    Returns:
        Values of settings, as their flags take them.

    Raises:
        StartupError: It cannot be read, or has a key that is no setting.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupError(f"--config {path}: {error}") from error
    models = values.pop("models", [])
    known = [field.name for field in dataclasses.fields(ServeConfig)]
    _check_keys(path, values, known)
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise StartupError(f"--config {path}: models must be tables, [[models]]")
    if models and any(key in values for key in ("model", *_OF_MODELS)):
        raise StartupError(f"--config {path}: give models either as [[models]] or as model = [...]")
    for model in models:
        _add_model(path, values, model)
    for key in _FILES:
        if key in values:
            values[key] = str(path.parent / str(values[key]))
    return values


def _add_model(path: Path, values: dict[str, Any], model: Mapping[str, Any]) -> None:
    _check_keys(path, model, _MODEL_KEYS)
    if not model.get("name"):
        raise StartupError(f"--config {path}: each of [[models]] needs a name")
    key = model_id(model["name"], str(model.get("version", "")))
    source = model.get("path", model["name"])
    values.setdefault("model", []).append(f"{key}={_beside(path, source)}")
    for setting in _OF_MODELS:
        if setting in model:
            values.setdefault(setting, []).append(f"{key}={_beside(path, model[setting])}")


def _beside(path: Path, value: str) -> str:
    """Returns a file's path relative to the configuration; any other value as it is."""
    beside = path.parent / value
    return str(beside) if beside.exists() else value


def _check_keys(path: Path, table: Mapping[str, Any], known: list[str] | tuple[str, ...]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise StartupError(
            f"--config {path}: unknown {', '.join(unknown)}; the keys are: {', '.join(known)}"
        )
