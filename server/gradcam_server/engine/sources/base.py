"""Where an engine's graphs come from: models, which TensorFlow compiles, or exports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.model_spec import ModelSpec, check_source
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph

_MODEL_PACKAGES = ("tensorflow", "keras", "h5py")  # which a server of exports does without


class GraphSource(Protocol):
    """One model, and the graphs that it has or can make."""

    @property
    def served(self) -> ServedModel:
        """The model as requests see it."""
        ...

    @property
    def device_count(self) -> int:
        """How many devices its graphs run on."""
        ...

    def answer_by_likely_preprocessing(
        self, image: NDArray[np.uint8]
    ) -> dict[Preprocessing, NDArray[np.float32]]:
        """Runs the model with each likely preprocessing, if none is declared or recognized.

        Args:
            image: RGB of the model's input size, uint8, shape (H, W, 3).

        Returns:
            Probabilities, float32, shape (classes,), by preprocessing; empty if the model's
            preprocessing is not in doubt.
        """
        ...

    def compile_soonest(self, key: GraphKey, batch_sizes: Sequence[int]) -> CompiledGraph | None:
        """Compiles a graph in the way that is ready soonest; ``compile`` may give a faster graph.

        Args:
            key: The graph.
            batch_sizes: The batch sizes, ascending.

        Returns:
            The graph, or None if ``compile`` is the only way, or as soon ready.

        Raises:
            InvalidRequestError: The graph cannot be computed.
        """
        ...

    def compile(self, key: GraphKey, batch_sizes: Sequence[int]) -> CompiledGraph:
        """Compiles the fastest graph. May take minutes.

        Args:
            key: The graph.
            batch_sizes: The batch sizes, ascending.

        Raises:
            InvalidRequestError: The graph cannot be computed, or not from this source.
        """
        ...


def open_source(spec: ModelSpec, config: ServeConfig, counter: CompilationCounter) -> GraphSource:
    """Opens a model or an export.

    Args:
        spec: The model.
        config: The settings.
        counter: Counts the compiled graphs.

    Raises:
        StartupError: The model or its weights cannot be loaded or used, or TensorFlow is not
            installed.
    """
    check_source(spec)
    from gradcam_server.exports.manifest import is_export

    if not spec.built_in and is_export(Path(spec.source)):
        from gradcam_server.engine.sources.export import ExportedSource

        return ExportedSource(spec, config, counter)
    try:
        from gradcam_server.engine.sources.model import ModelSource
    except ModuleNotFoundError as error:
        if error.name not in _MODEL_PACKAGES:
            raise
        raise StartupError(
            f"the model {spec.id} needs {error.name}: pip install 'gradcam-server[cpu]', or [gpu] "
            "for GPUs; without TensorFlow an export of the model can be used (gradcam export)"
        ) from error
    return ModelSource(spec, config, counter)
