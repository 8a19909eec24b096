"""Writes the graphs of an export in StableHLO, and their weights once."""

from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.numpy import save

from gradcam_server.domain.graph_io import output_names
from gradcam_server.domain.options import Precision
from gradcam_server.errors import StartupError
from gradcam_server.exports.manifest import WEIGHTS, ExportedGraph, module_file
from gradcam_server.graphs.compilers.autotune import check
from gradcam_server.graphs.compilers.base import REFERENCE, find_compiler
from gradcam_server.graphs.compilers.pjrt import Converted, Weights, convert
from gradcam_server.graphs.compilers.pjrt_devices import set_up_devices
from gradcam_server.graphs.compilers.pjrt_runtime import in_batches_of, load_module, put_weights
from gradcam_server.graphs.executable import Executable
from gradcam_server.graphs.explanation import ExplanationGraph


class StableHloWriter:
    """Writes graphs; see ``GraphWriter``.

    Args:
        folder: The folder of the export.
        precision: The precision of the network.

    Raises:
        StartupError: StableHLO has no such precision.
    """

    packages = ("jax", "jaxlib")

    def __init__(self, folder: Path, precision: Precision) -> None:
        if precision is Precision.INT8:
            raise StartupError(
                "int8 is exported for OpenVINO alone: use --for openvino, or --precision bfloat16"
            )
        self._folder, self._precision = folder, precision
        self._weights = Weights()
        (self._device,) = set_up_devices(["CPU:0"])

    def add(
        self, number: int, graph: ExplanationGraph, batch_sizes: Sequence[int]
    ) -> tuple[ExportedGraph, Executable, Callable[[], Executable]]:
        """Converts and writes a graph; the reference is TensorFlow in float32.

        The module of the smallest batch size is run on this machine and compared.
        """
        sizes = batch_sizes[-1:] if graph.key.perturbed else batch_sizes
        modules, names = {}, {}
        for size in sizes:
            converted = convert(graph, self._precision, size, self._weights)
            modules[size], names[size] = module_file(number, size), converted.weights
            (self._folder / modules[size]).write_bytes(converted.artifact)
            if size == sizes[0]:
                executable = self._load(converted, size)
        assert len(set(names.values())) == 1
        check(graph, in_batches_of(executable, 2), self._precision)
        exported = ExportedGraph(
            graph.key,
            file="",
            outputs=output_names(len(graph.key.layers)),
            cost_s={},
            modules=modules,
            weights=names[sizes[0]],
        )

        def make_reference() -> Executable:
            return find_compiler(REFERENCE)(graph, Precision.FLOAT32)(1)[0]

        return exported, in_batches_of(executable, 1), make_reference

    def _load(self, converted: Converted, batch_size: int) -> dict[int, Executable]:
        values = {name: self._weights.values[name] for name in converted.weights}
        weights = put_weights(values, self._device)
        return {batch_size: load_module(converted.artifact, [*weights.values()], self._device)}

    def finish(self) -> None:
        """Writes the weights of all graphs."""
        (self._folder / WEIGHTS).write_bytes(save(self._weights.values))
