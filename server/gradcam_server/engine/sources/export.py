"""An export as a source of graphs: OpenVINO runs them, and TensorFlow is never imported."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import NO_CLASS, GraphKey, by_rank
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.registry import REGISTRY
from gradcam_server.domain.warm import warm_option
from gradcam_server.errors import InvalidRequestError, StartupError, quote
from gradcam_server.exports.manifest import ExportedGraph, read_manifest
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph, Executable

logger = logging.getLogger(__name__)


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
        self._manifest = manifest = read_manifest(self._folder)
        try:
            from gradcam_server.exports.graphs import read_graph
        except ModuleNotFoundError as error:
            if error.name != "openvino":
                raise
            raise StartupError(
                f"the export {self._folder} needs openvino: pip install 'gradcam-server[openvino]'"
            ) from error
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
        # Read now, so that the checked graphs are served even if the folder changes.
        self._graphs = [
            (replace(graph.key, model=spec.id), graph, read_graph(self._folder, manifest, graph))
            for graph in manifest.graphs
        ]
        self.served = ServedModel(
            spec.name,
            spec.version,
            manifest.labels,
            manifest.layers,
            manifest.default_layer,
            manifest.input_size,
            manifest.preprocessing,
            f"{manifest.weights}, {manifest.precision}, exported {manifest.created}",
            manifest.random_weights,
            preprocessing_declared=manifest.preprocessing_declared,
        )

    device_count = 1

    def answer_by_likely_preprocessing(
        self,
        image: NDArray[np.uint8],  # noqa: ARG002 - as GraphSource has it
    ) -> dict[Preprocessing, NDArray[np.float32]]:
        """Returns nothing: the preprocessing is part of the graphs; gradcam export warns."""
        return {}

    def compile_soonest(self, key: GraphKey, batch_sizes: Sequence[int]) -> None:
        """Returns None: reading a graph is the only way, and quick."""

    def compile(self, key: GraphKey, batch_sizes: Sequence[int]) -> CompiledGraph:
        """Reads a graph and compiles it for this CPU.

        Raises:
            InvalidRequestError: The graph was not exported, or OpenVINO cannot run it here.
        """
        own_key, graph, model = self._find(key)
        from gradcam_server.graphs.compilers import openvino_runtime

        self._counter.increment()
        precision = self._manifest.precision
        began = perf_counter()
        try:
            executables = openvino_runtime.load_model(model, graph.outputs, precision)
            cost_s = self._costs(executables[0], graph, batch_sizes)
        except Exception as error:
            raise InvalidRequestError(
                "method",
                f"{key} cannot be run by OpenVINO: {quote(error)}. Export the model again with "
                "the versions that are installed here, or serve the model itself",
            ) from error
        logger.info(
            "Read %s in %s and compiled it in %.1f s; milliseconds by batch size: %s",
            *(key, precision, perf_counter() - began),
            ", ".join(f"{size}: {seconds * 1e3:.1f}" for size, seconds in cost_s.items()),
        )
        by_size = dict.fromkeys(batch_sizes, executables)
        input_size = self._manifest.input_size
        return CompiledGraph(own_key, input_size, Compiler.OPENVINO, by_size, cost_s)

    def _find(self, key: GraphKey) -> tuple[GraphKey, ExportedGraph, Any]:
        """Finds a graph for at least as many targets; unused targets cost little."""
        found = [
            row
            for row in self._graphs
            if replace(row[0], max_targets=key.max_targets) == key
            and row[0].max_targets >= key.max_targets
        ]
        if not found:
            raise InvalidRequestError(
                "layers",
                f"{key} is not in the export {self._folder.name}, which has: "
                f"{'; '.join(dict.fromkeys(str(own_key) for own_key, *_ in self._graphs))}. "
                f"{_remedy(key)}",
            )
        return min(found, key=lambda row: row[0].max_targets)

    def _costs(
        self, executable: Executable, graph: ExportedGraph, batch_sizes: Sequence[int]
    ) -> Mapping[int, float]:
        """Times one batch size; the others' ratios to it were measured at the export."""
        size, key = min(batch_sizes), graph.key
        targets = np.full((size, key.max_targets), by_rank(0), np.int32)
        images = np.zeros((size, *self._manifest.input_size, 3), key.pixel_type)
        seconds = []
        for _ in range(3):  # the first warms up
            began = perf_counter()
            executable(images, targets, np.full_like(targets, NO_CLASS))
            seconds.append(perf_counter() - began)
        exported = {batch: _interpolate(graph.cost_s, batch) for batch in batch_sizes}
        return {batch: exported[batch] * min(seconds) / exported[size] for batch in batch_sizes}


def _remedy(key: GraphKey) -> str:
    """Returns how to get a graph that was not exported."""
    if key.perturbed:
        return "Methods of many passes need the model itself: serve its file, not the export"
    if REGISTRY[key.method].decomposes:
        return f"OpenVINO does not compute {key.method}: serve the model's file, not the export"
    return f"Export the model again with --warm {warm_option(key)}"


def _interpolate(cost_s: Mapping[int, float], size: int) -> float:
    """Returns the seconds of a batch size; beyond the largest measured size, in proportion."""
    sizes = sorted(cost_s)
    largest = sizes[-1]
    if size > largest:
        return cost_s[largest] * size / largest
    return float(np.interp(size, sizes, list(map(cost_s.__getitem__, sizes))))
