"""The models to load, from the settings that name them and their options."""

import re
from collections.abc import Container, Iterable
from pathlib import Path

from gradcam_server.config.settings import ServeConfig, flag
from gradcam_server.domain.model_spec import BUILT_IN, ModelSpec
from gradcam_server.domain.options import Outputs
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError


def model_specs(config: ServeConfig) -> tuple[ModelSpec, ...]:
    """Returns the models to load, each with its options.

    Raises:
        StartupError: An option is wrong, or it is not clear which model it is for.
    """
    sources: dict[str, str] = {}
    for option in config.model:
        key, separator, path = option.partition("=")
        name, colon, version = key.partition(":")
        if not name or (separator and not path) or (colon and not (version and path)):
            raise StartupError(
                f"--model {option}: it must be a name, NAME=PATH or NAME:VERSION=PATH"
            )
        if key in sources:
            raise StartupError(f"--model {option}: there are two models of the name {key!r}")
        sources[key] = path or name
    for key in sources:
        if any(other.startswith(f"{key}:") for other in sources):
            raise StartupError(
                f"--model {key}: there are several models of this name, so it needs a version"
            )
    # A file has its weights, so a value for all models is for the built-in models; their
    # outputs are known.
    built_in = [key for key, source in sources.items() if source in BUILT_IN]
    files = [key for key in sources if key not in built_in]
    weights = _by_model("weights", config.weights, sources, built_in or sources)
    preprocessing = _by_model("preprocessing", config.preprocessing, sources, sources)
    outputs = _by_model("outputs", config.outputs, sources, files or sources)
    labels = _by_model("labels", config.labels, sources, sources)
    input_sizes = _by_model("input_size", config.input_size, sources, sources)
    return tuple(
        ModelSpec(
            key.partition(":")[0],
            source,
            weights.get(key, "imagenet"),
            config.seed,
            _preprocessing(preprocessing.get(key)),
            Path(labels[key]) if key in labels else None,
            _size(input_sizes.get(key)),
            config.custom_objects,
            key.partition(":")[2],
            _outputs(outputs.get(key)),
        )
        for key, source in sources.items()
    )


def _by_model(
    setting: str, options: Iterable[str], models: Container[str], default_for: Iterable[str]
) -> dict[str, str]:
    """Reads an option that is VALUE for all models, or MODEL=VALUE for one.

    A value may hold "=" if the text before it is no model.

    Raises:
        StartupError: There are several values for one model.
    """
    plain: list[str] = []
    named: dict[str, str] = {}
    for option in options:
        name, separator, value = option.partition("=")
        if not separator or name not in models:
            plain.append(option)
        elif name in named:
            raise StartupError(f"{flag(setting)} was given twice for {name}")
        else:
            named[name] = value
    if len(plain) > 1:
        raise StartupError(
            f"{flag(setting)} was given as {', '.join(plain)}: with several, each must be "
            "MODEL=VALUE for a served model"
        )
    return {**{name: value for value in plain for name in default_for}, **named}


def _preprocessing(value: str | None) -> Preprocessing | None:
    if value is None:
        return None
    if value not in set(Preprocessing):
        raise StartupError(f"--preprocessing {value}: it must be one of {', '.join(Preprocessing)}")
    return Preprocessing(value)


def _outputs(value: str | None) -> Outputs | None:
    if value is None:
        return None
    if value not in set(Outputs):
        raise StartupError(f"--outputs {value}: it must be one of {', '.join(Outputs)}")
    return Outputs(value)


def _size(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if not (match := re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", value)):
        raise StartupError(f"--input-size {value}: it must be HEIGHTxWIDTH, such as 224x224")
    return int(match[1]), int(match[2])
