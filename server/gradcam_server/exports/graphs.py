"""Reads the graphs of an export by OpenVINO, and checks their inputs and outputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradcam_server.errors import StartupError, quote
from gradcam_server.exports.manifest import ExportedGraph, Manifest
from gradcam_server.graphs.compilers.openvino_runtime import INPUTS, OUTPUTS, openvino, read_model

_ANY = -1


def read_graph(folder: Path, manifest: Manifest, graph: ExportedGraph) -> Any:
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
    maps = [f"maps_{number}" for number in range(len(key.layers))]
    if graph.outputs != (*OUTPUTS, *maps):
        yield f"its outputs must be {', '.join((*OUTPUTS, *maps))}"
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
