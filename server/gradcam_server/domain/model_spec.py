"""The built-in models, and the specification of a model to load."""

from dataclasses import dataclass
from pathlib import Path

from gradcam_server.domain.options import Outputs
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError

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
    """A model to load, and the properties that its file does not state.

    Attributes:
        name: The name by which requests choose it.
        source: One of ``BUILT_IN``, or the path of a .keras or .h5 file or of a SavedModel.
        weights: The weights of a built-in model: ``imagenet``, ``random``, ``none`` (builds the
            layers alone, quickly) or a file.
        seed: For random weights.
        preprocessing: How pixels become the network's input; None is the built-in model's own,
            and ``none`` for a file.
        labels: A file of class names (see ``label_file``), or ``imagenet``; None is ImageNet's
            for built-in models, and no names for a file.
        input_size: (height, width) in pixels, where a file leaves them open.
        custom_objects: Python modules that register the classes which a file needs.
        version: Distinguishes models of one name.
        outputs: The kind of a file's outputs; None finds out.
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
        """NAME, or NAME:VERSION."""
        return model_id(self.name, self.version)

    @property
    def built_in(self) -> bool:
        """Whether the source is the name of a built-in model."""
        return self.source in BUILT_IN


def check_source(spec: ModelSpec) -> None:
    """Refuses a mistyped model before anything slow begins.

    Raises:
        StartupError: The source is neither a built-in model nor a path.
    """
    path = Path(spec.source)
    if not (spec.built_in or path.suffix or path.exists() or len(path.parts) > 1):
        raise StartupError(
            f"unknown model {spec.source!r}; the models are: {', '.join(BUILT_IN)}, "
            "or NAME=PATH of a .keras or .h5 file or a SavedModel"
        )
