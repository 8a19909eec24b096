"""The graphs of an export in OpenVINO's format: reads, checks and compiles them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import INPUTS
from gradcam_server.domain.options import Compiler
from gradcam_server.errors import StartupError, quote
from gradcam_server.exports.loaded_graphs import Executed, time_batch
from gradcam_server.exports.manifest import ExportedGraph, Manifest
from gradcam_server.graphs.compilers.openvino_runtime import CpuModel, openvino, read_model
from gradcam_server.graphs.compilers.streams import StreamTuner
from gradcam_server.graphs.compilers.timing_cache import open_timing_cache
from gradcam_server.graphs.executable import Division, RunAlone
from gradcam_server.graphs.timing import noise_batch

logger = logging.getLogger(__name__)

_ANY = -1


class OpenVinoGraphs:
    """The graphs of an export; see ``LoadedGraphs``.

    Args:
        folder: The export.
        manifest: Its manifest.
        config: The settings.

    Raises:
        StartupError: OpenVINO cannot read a graph, or its inputs and outputs are not those of the
            manifest.
    """

    compiler = Compiler.OPENVINO
    device_count = 1

    def __init__(self, folder: Path, manifest: Manifest, config: ServeConfig) -> None:
        self._manifest = manifest
        cache = open_timing_cache(config.cache_dir)
        self._streams = StreamTuner(manifest.name, config.compute_streams, cache)
        self.precision = manifest.precision.value
        # Read now, so that the checked graphs are served even if the folder changes.
        self._models = [_read(folder, manifest, graph) for graph in manifest.graphs]

    def load(self, number: int, batch_sizes: Sequence[int]) -> Executed:
        """Compiles a graph for this CPU, once for all batch sizes."""
        graph, manifest = self._manifest.graphs[number], self._manifest
        model = CpuModel(self._models[number], graph.outputs, manifest.precision)
        logger.debug("Compiled graph %d", number)
        # The ratios of the others to it were measured at the export, perhaps on a busy machine: the
        # batches that run show what they are here. The start waits for no more than one run.
        size = min(batch_sizes)
        seconds = time_batch(model.whole, graph.key, manifest.input_size, size, max_runs=1)
        exported = {batch: _interpolate(graph.cost_s, batch) for batch in batch_sizes}
        cost_s = {batch: exported[batch] * seconds / exported[size] for batch in batch_sizes}
        name = repr((graph.key, manifest.sha256.get(graph.file), manifest.precision))
        make_batch = partial(noise_batch, graph.key, manifest.input_size, 1)

        def divide(run_alone: RunAlone) -> Division:
            return self._streams.divide(name, model, cost_s, make_batch, run_alone)

        executables = (model.whole,)
        guessed = [batch for batch in batch_sizes if batch != size]
        return Executed(
            [dict.fromkeys(batch_sizes, executables)], cost_s, divide=divide, guessed=guessed
        )


def _interpolate(cost_s: Mapping[int, float], size: int) -> float:
    """Returns the seconds of a batch size; beyond the largest measured size, in proportion."""
    sizes = sorted(cost_s)
    largest = sizes[-1]
    if size > largest:
        return cost_s[largest] * size / largest
    return float(np.interp(size, sizes, list(map(cost_s.__getitem__, sizes))))


def _read(folder: Path, manifest: Manifest, graph: ExportedGraph) -> Any:
    """Reads a graph, whose files have been checked.

    Args:
        folder: The export.
        manifest: The manifest of the export.
        graph: A graph of the manifest.

    Returns:
        An ``openvino.Model``.

    Raises:
        StartupError: OpenVINO cannot read the graph, or its inputs and outputs are not those of
            the manifest.
    """
    file = folder / graph.file
    try:
        model = read_model(file, folder / graph.weights_file)
        fault = next(_faults(model, manifest, graph), None)
    except (OSError, ValueError, RuntimeError) as error:
        raise StartupError(
            f"{file} cannot be read by OpenVINO: {quote(error)}. Export the model again with the "
            "versions that are installed here, or serve the model itself"
        ) from error
    if fault:
        raise StartupError(f"{file} is not the graph of its manifest: {fault}; export again")
    return model


def _faults(model: Any, manifest: Manifest, graph: ExportedGraph) -> Iterator[str]:
    key, classes = graph.key, len(manifest.labels)
    if len(model.inputs) != len(INPUTS):
        yield f"it has {len(model.inputs)} inputs, not {len(INPUTS)}"
    targets = [_ANY, key.max_targets]
    expected: dict[str, tuple[Any, list[int], type[np.generic]]] = {
        "images": (model.input, [_ANY, *manifest.input_size, 3], key.pixel_type),
        "classes": (model.input, targets, np.int32),
        "against": (model.input, targets, np.int32),
        "logits": (model.output, [_ANY, classes], np.float32),
        "probabilities": (model.output, [_ANY, classes], np.float32),
        "chosen": (model.output, targets, np.int32),
        "scores": (model.output, targets, np.float32),
    }
    of_maps = [_ANY, key.channel_count or key.max_targets, _ANY, _ANY]
    maps = (name for name in graph.outputs if name not in expected)
    expected |= dict.fromkeys(maps, (model.output, of_maps, np.float32))
    for name, (find, sizes, pixel_type) in expected.items():
        port, shape = find(name), openvino.PartialShape(sizes)
        kind = openvino.Type(pixel_type)
        # The batch size must be open; other open sizes are compatible with the manifest's.
        if not (
            port.partial_shape.compatible(shape)
            and port.partial_shape[0].is_dynamic
            and port.element_type == kind
        ):
            yield (
                f"{name} is {port.element_type.get_type_name()} {port.partial_shape}, and should "
                f"be {kind.get_type_name()} {shape}"
            )
