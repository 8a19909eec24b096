"""Settings from a TOML file: the keys of ``ServeConfig``, and tables of models."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.model_spec import model_id
from gradcam_server.errors import StartupError

_OF_MODELS = ("weights", "preprocessing", "outputs", "labels", "input_size")
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
        StartupError: The file cannot be read, or has a key that is no setting.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupError(f"--config {path}: {error}") from error
    return to_settings(values, path.parent, f"--config {path}")


def to_settings(table: Mapping[str, Any], folder: Path, origin: str) -> dict[str, Any]:
    """Turns the keys of a file, or of a table with the same keys, into settings.

    Args:
        table: The keys and values.
        folder: The folder that paths are relative to.
        origin: The name of the table in errors.

    Returns:
        Values of settings, as their flags take them.

    Raises:
        StartupError: A key is no setting.
    """
    values = dict(table)
    models = values.pop("models", [])
    known = [field.name for field in dataclasses.fields(ServeConfig)]
    _check_keys(origin, values, known)
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise StartupError(f"{origin}: models must be tables, [[models]]")
    if models and any(key in values for key in ("model", *_OF_MODELS)):
        raise StartupError(f"{origin}: give models either as [[models]] or as model = [...]")
    for model in models:
        _add_model(origin, folder, values, model)
    for key in _FILES:
        if key in values:
            values[key] = str(folder / str(values[key]))
    return values


def _add_model(origin: str, folder: Path, values: dict[str, Any], model: Mapping[str, Any]) -> None:
    _check_keys(origin, model, _MODEL_KEYS)
    if not model.get("name"):
        raise StartupError(f"{origin}: each of [[models]] needs a name")
    key = model_id(model["name"], str(model.get("version", "")))
    source = model.get("path", model["name"])
    values.setdefault("model", []).append(f"{key}={_beside(folder, source)}")
    for setting in _OF_MODELS:
        if setting in model:
            values.setdefault(setting, []).append(f"{key}={_beside(folder, model[setting])}")


def _beside(folder: Path, value: str) -> str:
    """Returns a file's path relative to the configuration; any other value as it is."""
    beside = folder / value
    return str(beside) if beside.exists() else value


def _check_keys(origin: str, table: Mapping[str, Any], known: list[str] | tuple[str, ...]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise StartupError(
            f"{origin}: unknown {', '.join(unknown)}; the keys are: {', '.join(known)}"
        )
