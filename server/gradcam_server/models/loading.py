"""Loads a model of any source. TensorFlow is imported when the first model is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradcam_server.domain.model_spec import ModelSpec, check_source
from gradcam_server.errors import StartupError

if TYPE_CHECKING:
    from gradcam_server.models.loaded import LoadedModel


def load(spec: ModelSpec) -> LoadedModel:
    """Loads a model.

    Raises:
        StartupError: There is no such model, or it or its weights cannot be loaded or explained;
            the text names the ways out.
    """
    if spec.built_in and spec.outputs:
        raise StartupError(
            f"--outputs {spec.outputs}: {spec.source} is built in, so its outputs are known; "
            "the option is for models from files"
        )
    if spec.built_in:
        from gradcam_server.models import built_in

        return built_in.load(spec)
    check_source(spec)
    from gradcam_server.models import from_file

    _import_modules(spec.custom_objects)
    return from_file.load(spec)


def _import_modules(modules: Sequence[str]) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise StartupError(
                f"--custom-objects {module}: it cannot be imported ({error!r}); it must be a "
                "module that Python finds, for example in a folder of PYTHONPATH"
            ) from error
