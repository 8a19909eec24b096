"""An export as a source of graphs, for which TensorFlow is never imported."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import GraphFormat, Precision
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.registry import REGISTRY
from gradcam_server.domain.warm import warm_option
from gradcam_server.errors import InvalidRequestError, StartupError, quote
from gradcam_server.exports.loaded_graphs import LoadedGraphs
from gradcam_server.exports.manifest import Manifest, parse_manifest
from gradcam_server.graphs.compilers.base import COMPILERS
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph

logger = logging.getLogger(__name__)

ReadGraphs = Callable[[Path, Manifest, ServeConfig], LoadedGraphs]
"""Reads and checks the graphs of a folder whose files are those of the manifest."""


class ExportedSource:
    """The graphs of an export, and no others.

    Args:
        spec: The model; its ``source`` is the folder.
        config: The settings.
        counter: Counts the graphs that are read.

    Raises:
        StartupError: The folder cannot be used; the text says why.
    """

    def __init__(self, spec: ModelSpec, config: ServeConfig, counter: CompilationCounter) -> None:
        self._folder = Path(spec.source)
        self._manifest = manifest = parse_manifest(self._folder)
        checks = manifest.check_graph_files(self._folder)
        # Files are hashed meanwhile, and those that no graph needs while the graphs are compiled.
        read_graphs = _import_runtime(self._folder, manifest.graph_format)
        checks.wait()
        self._other_checks = manifest.check_other_files(self._folder)
        logger.debug("Checked the files of the graphs of %s", self._folder)
        self._counter = counter
        if spec.preprocessing or spec.outputs or spec.labels or spec.input_size:
            raise StartupError(
                f"{spec.name}: preprocessing, outputs, labels and input size are part of the "
                f"export {self._folder}; give them to gradcam export"
            )
        if config.max_targets > manifest.max_targets:
            raise StartupError(
                f"{self._folder} was exported for {manifest.max_targets} classes in one request: "
                f"serve it with --max-targets {manifest.max_targets}, or export it again"
            )
        self._graphs = read_graphs(self._folder, manifest, config)
        logger.debug("Read the graphs of %s", self._folder)
        if config.precision not in (Precision.FLOAT32, self._graphs.precision):
            logger.warning(
                "%s stays in %s, as it was exported: --precision %s is for gradcam export",
                *(spec.name, self._graphs.precision, config.precision),
            )
        self._keys = [replace(graph.key, model=spec.id) for graph in manifest.graphs]
        self.served = ServedModel(
            spec.name,
            spec.version,
            manifest.labels,
            manifest.layers,
            manifest.default_layer,
            manifest.input_size,
            manifest.preprocessing,
            f"{manifest.weights}, {self._graphs.precision}, exported {manifest.created}",
            manifest.random_weights,
            preprocessing_declared=manifest.preprocessing_declared,
        )

    @property
    def device_count(self) -> int:
        """How many devices its graphs run on."""
        return self._graphs.device_count

    def answer_by_likely_preprocessing(
        self,
        image: NDArray[np.uint8],  # noqa: ARG002 - as GraphSource has it
    ) -> dict[Preprocessing, NDArray[np.float32]]:
        """Returns nothing: the preprocessing is part of the graphs; gradcam export warns."""
        return {}

    def compile_soonest(self, key: GraphKey, batch_sizes: Sequence[int]) -> None:
        """Returns None: the graphs of an export can be compiled in one way only."""

    def compile(self, key: GraphKey, batch_sizes: Sequence[int]) -> CompiledGraph:
        """Compiles a graph for the devices.

        Raises:
            InvalidRequestError: The graph was not exported, or cannot be run here.
            StartupError: A file that no graph needs is not the one that was exported.
        """
        number = self._find(key)
        graphs = self._graphs
        self._counter.increment()
        began = perf_counter()
        try:
            executed = graphs.load(number, batch_sizes)
        except Exception as error:
            raise InvalidRequestError(
                "method",
                f"{key} cannot be run by {graphs.compiler}: {quote(error)}. Export the model again "
                "with the versions that are installed here, or serve the model itself",
            ) from error
        self._other_checks.wait()
        logger.info(
            "Read %s in %s and compiled it in %.1f s; milliseconds by batch size: %s",
            *(key, graphs.precision, perf_counter() - began),
            ", ".join(f"{size}: {seconds * 1e3:.1f}" for size, seconds in executed.cost_s.items()),
        )
        first, *others = executed.executables
        # The strongest channels come first, so fewer of them need no graph of their own.
        own_key = replace(self._keys[number], channel_count=key.channel_count)
        input_size = self._manifest.input_size
        return CompiledGraph(
            *(own_key, input_size, graphs.compiler, first, executed.cost_s, others),
            depth=executed.depth,
            divide=executed.divide,
            guessed=executed.guessed,
        )

    def _find(self, key: GraphKey) -> int:
        """Finds a graph for at least as many targets and channels; unused targets cost little.

        Returns:
            Its place in the manifest.
        """
        found = [
            number
            for number, own in enumerate(self._keys)
            if replace(own, max_targets=key.max_targets, channel_count=key.channel_count) == key
            and own.max_targets >= key.max_targets
            and bool(own.channel_count) == bool(key.channel_count)
            and own.channel_count >= key.channel_count
        ]
        if not found:
            raise InvalidRequestError(
                "layers",
                f"{key} is not in the export {self._folder.name}, which has: "
                f"{'; '.join(dict.fromkeys(map(str, self._keys)))}. "
                f"{_remedy(key, self._manifest.graph_format)}",
            )
        return min(found, key=lambda number: self._keys[number].max_targets)


def _import_runtime(folder: Path, graph_format: GraphFormat) -> ReadGraphs:
    """Imports the runtime of a format; returns what reads and checks graphs for it.

    Raises:
        StartupError: The runtime is not installed.
    """
    try:
        if graph_format is GraphFormat.STABLEHLO:
            from gradcam_server.exports.stablehlo_graphs import StableHloGraphs

            return StableHloGraphs
        from gradcam_server.exports.openvino_graphs import OpenVinoGraphs
    except ModuleNotFoundError as error:
        for row in COMPILERS.values():
            if error.name in row.packages:
                raise StartupError(
                    f"the export {folder} needs {error.name}: "
                    f"pip install 'gradcam-server[{row.extra}]'"
                ) from error
        raise
    return OpenVinoGraphs


def _remedy(key: GraphKey, graph_format: GraphFormat) -> str:
    """Returns how to get a graph that was not exported."""
    if graph_format is GraphFormat.STABLEHLO:
        if key.perturbed:
            return (
                "Export the model again with --many-pass, and with the method, score and layers "
                "in --warm"
            )
        return f"Export the model again with --warm {warm_option(key)}"
    if key.perturbed:
        return "Methods of many passes need the model itself: serve its file, not the export"
    if REGISTRY[key.method].decomposes:
        return f"OpenVINO does not compute {key.method}: serve the model's file, not the export"
    return f"Export the model again with --warm {warm_option(key)}"
