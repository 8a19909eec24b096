"""A model as a source of graphs: TensorFlow traces them, and a compiler compiles them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.layers import default_layer
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.preprocessing import UNDECLARED, Preprocessing
from gradcam_server.errors import (
    CompilerError,
    DisconnectedLayerError,
    InvalidRequestError,
    StartupError,
)
from gradcam_server.graphs.compilers.autotune import compile_graph
from gradcam_server.graphs.compilers.base import REFERENCE
from gradcam_server.graphs.compilers.soonest import SoonestCompiler
from gradcam_server.graphs.compilers.streams import StreamTuner
from gradcam_server.graphs.compilers.timing_cache import open_timing_cache
from gradcam_server.graphs.devices import set_up_devices
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.graphs.training_mode import find_training_mode
from gradcam_server.models.likely import answer_by_likely_preprocessing
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.loading import load

logger = logging.getLogger(__name__)


class ModelSource:
    """A model in TensorFlow, and any graph of it.

    Args:
        spec: The model.
        config: The settings.
        counter: Counts the traced graphs.

    Raises:
        StartupError: The model or its weights cannot be loaded or explained.
    """

    def __init__(self, spec: ModelSpec, config: ServeConfig, counter: CompilationCounter) -> None:
        devices = set_up_devices(config.device, config.device_memory_mib)
        with tf.device(devices[0]):
            self.loaded = loaded = replace(load(spec), device=devices[0])
        self._others = [_load_on(device, spec) for device in devices[1:]]
        self._config, self._counter = config, counter
        self._is_checked = False
        self._timing_cache = open_timing_cache(config.cache_dir)
        self._streams = StreamTuner(spec.id, config.compute_streams, self._timing_cache)
        self._soonest = SoonestCompiler(config.precision)
        layers = loaded.network.layers
        try:
            default = default_layer(layers)
        except ValueError as error:
            raise StartupError(f"{spec.name} cannot be explained: {error}") from error
        self.served = ServedModel(
            spec.name,
            spec.version,
            loaded.labels,
            layers,
            default,
            loaded.input_size,
            loaded.preprocessing,
            loaded.weights,
            loaded.random_weights,
            preprocessing_declared=loaded.preprocessing_declared,
        )
        # The scaling of pixels is not declared, and the network does not scale them.
        self._is_doubtful = not (loaded.preprocessing_declared or loaded.scales_pixels)
        if self._is_doubtful:
            logger.warning(UNDECLARED, spec.name)

    @property
    def device_count(self) -> int:
        """How many devices its graphs run on."""
        return 1 + len(self._others)

    def answer_by_likely_preprocessing(
        self, image: NDArray[np.uint8]
    ) -> dict[Preprocessing, NDArray[np.float32]]:
        """Runs the model with each likely preprocessing; see ``GraphSource``."""
        return answer_by_likely_preprocessing(self.loaded, image) if self._is_doubtful else {}

    def compile(self, key: GraphKey, batch_sizes: Sequence[int]) -> CompiledGraph:
        """Traces, compiles and times a graph; the first graph is checked for training mode."""
        config = self._config

        def on(loaded: LoadedModel, compiler: Compiler) -> CompiledGraph:
            graph = ExplanationGraph(loaded, key, self._counter)
            # A copy on a further device has no streams: devices are not divided further.
            streams = None if self._others else self._streams
            return compile_graph(
                *(graph, batch_sizes, compiler, config.precision, self._timing_cache, streams)
            )

        with _explained(key):
            first = on(self.loaded, config.compiler)
            self._check(first)
            return first.with_devices_of([on(loaded, first.compiler) for loaded in self._others])

    def compile_soonest(self, key: GraphKey, batch_sizes: Sequence[int]) -> CompiledGraph | None:
        """Traces a graph for TensorFlow's executor, on the first device alone.

        Returns:
            The graph, or None if ``compile`` gives the same, or TensorFlow cannot trace it.
        """
        if self._config.compiler is REFERENCE and len(batch_sizes) == self.device_count == 1:
            return None
        graph = ExplanationGraph(self.loaded, key, self._counter)
        with _explained(key):
            try:
                compiled = self._soonest(graph, batch_sizes)
            except DisconnectedLayerError:
                raise
            except Exception as error:  # noqa: BLE001 - ``compile`` succeeds or says why not
                logger.debug("%s is not traced for a start: %s", key, error)
                return None
        self._check(compiled)
        return compiled

    def _check(self, graph: CompiledGraph) -> None:
        if self._is_checked:
            return
        if reason := find_training_mode(self.loaded, graph, self._config.precision):
            raise InvalidRequestError("model", reason)
        self._is_checked = True


@contextmanager
def _explained(key: GraphKey) -> Iterator[None]:
    """Turns the errors of compilers into errors of requests."""
    try:
        yield
    except DisconnectedLayerError as error:
        raise InvalidRequestError(
            "layers",
            f"layer {error.layer!r} of {key.model} cannot be explained: the classes do not "
            "depend on it",
        ) from error
    except CompilerError as error:
        raise InvalidRequestError("method", str(error)) from error


def _load_on(device: str, spec: ModelSpec) -> LoadedModel:
    with tf.device(device):
        return replace(load(spec), device=device)
