"""The graphs of an export in StableHLO: reads, checks and compiles them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import INPUTS
from gradcam_server.domain.options import Compiler
from gradcam_server.errors import StartupError, quote
from gradcam_server.exports.files import read_file
from gradcam_server.exports.loaded_graphs import Executed, time_batch
from gradcam_server.exports.manifest import WEIGHTS, ExportedGraph, Manifest
from gradcam_server.graphs.compilers.base import COMPILERS
from gradcam_server.graphs.compilers.pjrt_devices import device_name, set_up_devices
from gradcam_server.graphs.compilers.pjrt_modules import ModuleError, Signature, read_signature
from gradcam_server.graphs.compilers.pjrt_runtime import (
    CACHE_COUNTER,
    describe_precision,
    in_batches_of,
    load_module,
    put_weights,
)
from gradcam_server.graphs.compilers.timing_cache import default_folder
from gradcam_server.graphs.executable import Array

logger = logging.getLogger(__name__)

_CACHE = "xla"
_TYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
}


class StableHloGraphs:
    """The graphs of an export; see ``LoadedGraphs``.

    Args:
        folder: The export.
        manifest: Its manifest.
        config: The devices, the limit of their memory, and the cache folder.

    Raises:
        StartupError: A module or the weights cannot be read, or are not those of the manifest; or
            there is no such device.
    """

    compiler = Compiler.PJRT

    def __init__(self, folder: Path, manifest: Manifest, config: ServeConfig) -> None:
        self._manifest = manifest
        weights = _read_weights(folder, manifest)
        # Read now, so that the checked graphs are served even if the folder changes.
        self._modules = [
            {
                size: _read_module(folder, manifest, graph, size, weights)
                for size in sorted(graph.modules)
            }
            for graph in manifest.graphs
        ]
        cache = Path(config.cache_dir) if config.cache_dir else default_folder()
        self._devices = set_up_devices(config.device, config.device_memory_mib, cache / _CACHE)
        used = {name: weights[name] for graph in manifest.graphs for name in graph.weights}
        self._weights = [put_weights(used, device) for device in self._devices]
        self.precision = describe_precision(manifest.precision, self._devices)

    @property
    def device_count(self) -> int:
        """How many devices run them."""
        return len(self._devices)

    def load(self, number: int, batch_sizes: Sequence[int]) -> Executed:
        """Compiles the modules that the batch sizes need, or takes them from the cache."""
        graph, modules = self._manifest.graphs[number], self._modules[number]
        hits, misses = CACHE_COUNTER.hits, CACHE_COUNTER.misses
        input_size = self._manifest.input_size
        executables = []
        for device, weights in zip(self._devices, self._weights, strict=True):
            taken = [weights[name] for name in graph.weights]
            own = {size: load_module(module, taken, device) for size, module in modules.items()}
            executables.append({size: (in_batches_of(own, size),) for size in batch_sizes})
        costs = [
            {
                size: time_batch(executable, graph.key, input_size, size)
                for size, (executable,) in of_device.items()
            }
            for of_device in executables
        ]
        logger.info(
            "Compiled %d modules in %s, and read %d from the compilation cache",
            *(CACHE_COUNTER.misses - misses, self.precision, CACHE_COUNTER.hits - hits),
        )
        if padded := [size for size in batch_sizes if size not in modules]:
            logger.info(
                "%s was exported for batch sizes %s: %s is made of these; export the model again "
                "with --batch-sizes to have its own graph",
                *(graph.key, ", ".join(map(str, modules)), ", ".join(map(str, padded))),
            )
        row = COMPILERS[self.compiler]
        depth = min(row.depth_on(device_name(device)) for device in self._devices)
        return Executed(executables, costs[0], depth)


def _read_whole(folder: Path, manifest: Manifest, name: str) -> bytes:
    assert manifest.sizes is not None
    return read_file(folder, name, manifest.sizes[name])


def _read_weights(folder: Path, manifest: Manifest) -> Mapping[str, Array]:
    path = folder / WEIGHTS
    content = _read_whole(folder, manifest, WEIGHTS)
    try:
        return {
            name: np.frombuffer(row["data"], _TYPES[row["dtype"]]).reshape(row["shape"])
            for name, row in safetensors.deserialize(content)
        }
    except KeyError as error:
        raise StartupError(
            f"{path} has weights of type {error}, and should have only: {', '.join(_TYPES)}"
        ) from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise StartupError(
            f"{path} cannot be read as safetensors: {quote(error)}; export again"
        ) from error


def _read_module(
    folder: Path,
    manifest: Manifest,
    graph: ExportedGraph,
    batch_size: int,
    weights: Mapping[str, Array],
) -> bytes:
    name = graph.modules[batch_size]
    artifact = _read_whole(folder, manifest, name)
    try:
        signature = read_signature(artifact)
    except ModuleError as error:
        raise StartupError(
            f"{folder / name} cannot be read: {quote(error)}. Export the model again with the "
            "versions that are installed here, or serve the model itself"
        ) from error
    if fault := next(_faults(signature, manifest, graph, batch_size, weights), None):
        raise StartupError(
            f"{folder / name} is not the graph of its manifest: {fault}; export again"
        )
    return artifact


def _faults(
    signature: Signature,
    manifest: Manifest,
    graph: ExportedGraph,
    batch_size: int,
    weights: Mapping[str, Array],
) -> Iterator[str]:
    key, classes = graph.key, len(manifest.labels)
    targets = ("int32", (batch_size, key.max_targets))
    by_class = ("float32", (batch_size, classes))
    of_inputs = [
        (np.dtype(key.pixel_type).name, (batch_size, *manifest.input_size, 3)),
        *(targets, targets),
    ]
    of_outputs: list[tuple[str, tuple[int | None, ...]]] = [
        *(by_class, by_class, targets, ("float32", targets[1])),
        *[("float32", (batch_size, key.channel_count or key.max_targets, None, None))]
        * len(key.layers),
    ]
    yield from _differences(INPUTS, signature.inputs, of_inputs)
    yield from _differences(graph.outputs, signature.outputs, of_outputs)
    if missing := [name for name in graph.weights if name not in weights]:
        yield f"{WEIGHTS} has no weight {missing[0]!r}"
    else:
        stored = [(weights[name].dtype.name, weights[name].shape) for name in graph.weights]
        yield from _differences(graph.weights, signature.weights, stored, WEIGHTS)


def _differences(
    names: Sequence[str],
    found: Sequence[Any],
    expected: Sequence[tuple[str, tuple[int | None, ...]]],
    file: str = "the manifest",
) -> Iterator[str]:
    """Compares types; None is any size."""
    if len(found) != len(names):
        yield f"it has {len(found)} of {len(names)} inputs or outputs: {', '.join(names)[:200]}"
        return
    for name, ours, (dtype, shape) in zip(names, found, expected, strict=True):
        sizes = tuple(
            size if size is not None else other
            for size, other in zip(shape, ours.shape, strict=False)
        )
        if (ours.dtype.name, tuple(ours.shape)) != (dtype, sizes):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            yield f"{name} is {ours} in the module, and {dtype} [{wanted}] in {file}"
