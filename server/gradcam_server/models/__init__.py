"""The models: built in by name, or from files. ``load`` is the only way in.

Nothing here imports TensorFlow until a model is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradcam_server.errors import StartupError
from gradcam_server.models.outputs import Outputs
from gradcam_server.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from gradcam_server.models.loaded import LoadedModel

DEFAULT_MODEL = "resnet50"
EMBEDDED = "efficientnet-lite0"
BUILT_IN = (
    "resnet50",
    EMBEDDED,
    "resnet50v2",
    "mobilenetv2",
    "efficientnetb0",
    "densenet121",
    "vgg16",
    "inceptionv3",
    "xception",
    "convnexttiny",
)


def model_id(name: str, version: str) -> str:
    """Returns NAME, or NAME:VERSION."""
    return f"{name}:{version}" if version else name


@dataclass(frozen=True)
class ModelSpec:
    """What to load, and what the file itself does not say.

    Attributes:
        name: The name by which requests choose it.
        source: One of ``BUILT_IN``, or the path of a .keras or .h5 file or of a SavedModel.
        weights: Of a built-in model: ``imagenet``, ``random``, ``none`` (the layers alone:
            quick) or a file.
        seed: For random weights.
        preprocessing: How pixels become the network's input; None is the built-in model's own,
            and ``none`` for a file.
        labels: A file of class names (see ``label_file``), or ``imagenet``; None is ImageNet's
            for built-in models, and no names for a file.
        input_size: (height, width), where a file leaves it open.
        custom_objects: Python modules that register the classes which a file needs.
        version: Distinguishes models of one name.
        outputs: What a file's outputs are; None is found out.
    """

    name: str
    source: str
    weights: str = "imagenet"
    seed: int = 0
    preprocessing: Preprocessing | None = None
    labels: Path | None = None
    input_size: tuple[int, int] | None = None
    custom_objects: tuple[str, ...] = ()
    version: str = ""
    outputs: Outputs | None = None

    @property
    def id(self) -> str:
        """Name and version in one."""
        return model_id(self.name, self.version)

    @property
    def built_in(self) -> bool:
        """Whether the source is the name of a built-in model."""
        return self.source in BUILT_IN


def check_source(spec: ModelSpec) -> None:
    """Finds a mistyped model before anything slow begins.

    Raises:
        StartupError: The source is neither a built-in model nor a path.
    """
    path = Path(spec.source)
    if not (spec.built_in or path.suffix or path.exists() or len(path.parts) > 1):
        raise StartupError(
            f"unknown model {spec.source!r}; the models are: {', '.join(BUILT_IN)}, "
            "or NAME=PATH of a .keras or .h5 file or a SavedModel"
        )


def load(spec: ModelSpec) -> LoadedModel:
    """Loads a model.

    Raises:
        StartupError: No such model, or it or its weights cannot be had or explained; the
            text names the ways out.
    """
    if spec.built_in and spec.outputs:
        raise StartupError(
            f"--outputs {spec.outputs}: {spec.source} is built in and knows its outputs; the "
            "option is for models from files"
        )
    if spec.source == EMBEDDED:
        from gradcam_server.models import embedded

        return embedded.load(spec)
    if spec.built_in:
        from gradcam_server.models import applications

        return applications.load(spec)
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
