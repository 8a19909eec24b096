"""The manifest of an export: a JSON file beside its graphs, with the hashes of all files."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from gradcam_server.domain.graph_io import PIXELS, GraphKey, output_names
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.layers import Extent, LayerInfo
from gradcam_server.domain.options import GraphFormat, Precision
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError
from gradcam_server.exports.files import FileChecks, read_file
from gradcam_server.exports.typed_json import JsonError, Readers, convert, parse

MANIFEST = "gradcam.json"
WEIGHTS = "weights.safetensors"
"""The weights of all graphs in StableHLO."""

FORMAT = 1

_MAX_BYTES = 16 * 1024 * 1024
_SHA256 = re.compile("[0-9a-f]{64}")
_XML = ".xml"
_MODULE = ".mlirbc"


@dataclass(frozen=True)
class Agreement:
    """How the answers of the first graph agree with a reference in float32.

    The reference is the same graph, run by OpenVINO for exports to OpenVINO, and by TensorFlow for
    exports to StableHLO.

    Attributes:
        image_count: The number of images, none of which was used to calibrate.
        top1_percent: Images whose best class is the same, in %.
        correlation_mean: Mean of Pearson's correlation of the map of the best class with that in
            float32.
        correlation_percentiles: The correlations by percentile (1, 5, 25, 50).
        correlation_worst: The smallest correlation.
        largest_logit_difference: In units of the logits.
        images: The origin of the images, in words.
        largest_map_difference: As a share of the largest value of its map; older exports do not
            say.
    """

    image_count: int
    top1_percent: float
    correlation_mean: float
    correlation_percentiles: dict[str, float]
    correlation_worst: float
    largest_logit_difference: float
    images: str
    largest_map_difference: float | None = None


@dataclass(frozen=True)
class ExportedGraph:
    """A graph, as OpenVINO IR or in StableHLO.

    Attributes:
        key: The layers, method, score and targets that it computes.
        file: Its XML file, in the folder; empty for StableHLO.
        outputs: Names of its outputs, in the order of ``executable.Executable``.
        cost_s: Seconds that a batch of each size took on the machine of the export; empty for
            StableHLO, which the server times.
        modules: The files of its modules by batch size; empty for OpenVINO.
        weights: The names of its weights, in the order of the inputs; empty for OpenVINO.
    """

    key: GraphKey
    file: str
    outputs: tuple[str, ...]
    cost_s: dict[int, float]
    modules: dict[int, str] = field(default_factory=dict)
    weights: tuple[str, ...] = ()

    @property
    def weights_file(self) -> str:
        """The file of its weights, beside the XML file."""
        return f"{self.file.removesuffix(_XML)}.bin"


@dataclass(frozen=True)
class Manifest:
    """An export.

    Attributes:
        name: The model's name when it was exported.
        weights: The origin of the weights, in words.
        random_weights: Whether the weights are random.
        input_size: (height, width) in pixels.
        preprocessing: The preprocessing, which is part of the graph; for information.
        layers: The layers of the network.
        default_layer: The layer that is explained by default.
        labels: The classes.
        precision: The precision that the network is computed in.
        max_targets: The maximal number of classes in a request.
        graphs: The graphs.
        agreement: The agreement with the reference; None for OpenVINO in float32.
        versions: Versions of the packages that made the export.
        created: The time of the export, in UTC (ISO 8601).
        sha256: Hashes by path in the folder, in hexadecimal digits.
        preprocessing_declared: Whether the preprocessing was declared when the model was exported,
            or the model was built in; older exports do not say.
        sizes: Sizes by path in the folder, in bytes; older exports have none.
        graph_format: The format of the graphs.
    """

    name: str
    weights: str
    random_weights: bool
    input_size: tuple[int, int]
    preprocessing: Preprocessing
    layers: tuple[LayerInfo, ...]
    default_layer: str
    labels: ClassLabels
    precision: Precision
    max_targets: int
    graphs: tuple[ExportedGraph, ...]
    agreement: Agreement | None
    versions: dict[str, str]
    created: str
    sha256: dict[str, str]
    preprocessing_declared: bool = True
    sizes: dict[str, int] | None = None
    graph_format: GraphFormat = GraphFormat.OPENVINO

    def check_graph_files(self, folder: Path) -> FileChecks:
        """Begins to compare the files of the graphs, which a server reads, with the manifest.

        Raises:
            StartupError: A file is missing or has another size; ``FileChecks.wait`` raises the
                same for other content.
        """
        return self._check_files(folder, of_graphs=True)

    def check_other_files(self, folder: Path) -> FileChecks:
        """Does the same with the files for other programs, such as a SavedModel."""
        return self._check_files(folder, of_graphs=False)

    def _check_files(self, folder: Path, *, of_graphs: bool) -> FileChecks:
        files = {name for graph in self.graphs for name in _files_of(graph, self.graph_format)}
        hashes = {
            name: hash_ for name, hash_ in self.sha256.items() if (name in files) == of_graphs
        }
        return FileChecks(folder, hashes, self.sizes or {})

    def to_json(self) -> str:
        """Returns the manifest as JSON."""
        document = {
            "format": FORMAT,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "layers": [_layer_row(layer) for layer in self.layers],
            "labels": [[label.name, *label.aliases] for label in self.labels.labels],
            "graphs": [dataclasses.asdict(graph) for graph in self.graphs],
            "agreement": self.agreement and dataclasses.asdict(self.agreement),
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def module_file(number: int, batch_size: int) -> str:
    """Returns the file of a graph's StableHLO module for a batch size."""
    return f"graph_{number}_{batch_size}{_MODULE}"


def is_export(folder: Path) -> bool:
    """Returns whether a path is the folder of an export, even one with a broken manifest."""
    return os.path.lexists(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest, and compares all files with it.

    Raises:
        StartupError: The manifest cannot be read, has another format, or contradicts itself, or a
            file is not the one that was exported.
    """
    manifest = parse_manifest(folder)
    manifest.check_graph_files(folder).wait()
    manifest.check_other_files(folder).wait()
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """Reads a manifest. Its files are not to be used before they are checked.

    Raises:
        StartupError: The manifest cannot be read, has another format, or contradicts itself.
    """
    try:
        document = parse(read_file(folder, MANIFEST, _MAX_BYTES))
        return _read(document)
    except JsonError as error:
        path = folder / MANIFEST
        raise StartupError(f"{path} is not a manifest of gradcam export: {error}") from error


def _read(document: Any) -> Manifest:
    if not isinstance(document, dict) or "format" not in document:
        raise JsonError("format is missing")
    if (found := document.pop("format")) != FORMAT:
        raise JsonError(
            f"it has format {found!r:.20}; this version reads format {FORMAT}: export the model "
            "again"
        )
    manifest: Manifest = convert(Manifest, document, "", _READERS)
    if (fault := next(_faults(manifest), None)) is not None:
        raise JsonError(fault)
    return manifest


def _layer_row(layer: LayerInfo) -> list[Any]:
    """Returns a layer's values, without an extent if it has none, as in older manifests."""
    extent = [] if layer.extent is None else [dataclasses.astuple(layer.extent)]
    return [layer.name, layer.type, layer.output_shape, layer.explainable, *extent]


_LAYER: Any = tuple[str, str, tuple[int | None, ...], bool]
_EXTENT: Any = tuple[float, float, float, float]
_LAYER_WITH_EXTENT: Any = tuple[str, str, tuple[int | None, ...], bool, _EXTENT]


def _read_layer(row: Any, where: str) -> LayerInfo:
    has_extent = isinstance(row, list) and len(row) == len(get_args(_LAYER_WITH_EXTENT))
    values = convert(_LAYER_WITH_EXTENT if has_extent else _LAYER, row, where, {})
    name, kind, shape, explainable, *extent = values
    return LayerInfo(name, kind, shape, explainable, *(Extent(*values) for values in extent))


def _read_labels(rows: Any, where: str) -> ClassLabels:
    labels = convert(tuple[tuple[str, ...], ...], rows, where, {})
    if not all(labels):
        raise JsonError(f"each of {where} must be a name, and then its aliases")
    return ClassLabels([ClassLabel(name, tuple(aliases)) for name, *aliases in labels])


_READERS: Readers = {LayerInfo: _read_layer, ClassLabels: _read_labels}


def _faults(manifest: Manifest) -> Iterator[str]:
    """Yields contradictions in a manifest whose values have the right types."""
    for name, number in (
        ("input_size", min(manifest.input_size)),
        ("max_targets", manifest.max_targets),
    ):
        if number < 1:
            yield f"{name} must be positive"
    explainable = {layer.name for layer in manifest.layers if layer.explainable}
    if manifest.default_layer not in explainable:
        yield "default_layer must be an explainable layer"
    for layer in manifest.layers:
        if (extent := layer.extent) is not None and not (
            all(map(math.isfinite, dataclasses.astuple(extent)))
            and min(extent.height, extent.width) > 0
        ):
            yield f"the extent of layer {layer.name} must be a rectangle"
    if not manifest.graphs:
        yield "graphs must not be empty"
    for number, graph in enumerate(manifest.graphs):
        for fault in _graph_faults(graph, manifest, explainable):
            yield f"graphs[{number}].{fault}"
    if manifest.sizes is None and manifest.graph_format is GraphFormat.STABLEHLO:
        yield "sizes is missing"
    if manifest.sizes is not None and manifest.sizes.keys() != manifest.sha256.keys():
        yield "sizes and sha256 must name the same files"
    for name, digest in manifest.sha256.items():
        if not _SHA256.fullmatch(digest):
            yield f"sha256.{name} must be 64 hexadecimal digits"


def _graph_faults(graph: ExportedGraph, manifest: Manifest, explainable: set[str]) -> Iterator[str]:
    key = graph.key
    if not 1 <= key.max_targets <= manifest.max_targets:
        yield "key.max_targets must be positive, and no more than max_targets"
    if key.channel_count < 0:
        yield "key.channel_count must not be negative"
    if not key.layers or not (
        explainable.issuperset(key.layers) or (key.perturbed and key.layers == (PIXELS,))
    ):
        yield "key.layers must be explainable layers"
    if graph.outputs != (names := output_names(len(key.layers))):
        yield f"outputs must be {', '.join(names)}"
    is_openvino = manifest.graph_format is GraphFormat.OPENVINO
    yield from _openvino_faults(graph) if is_openvino else _stablehlo_faults(graph)
    for name in _files_of(graph, manifest.graph_format):
        if name not in manifest.sha256:
            yield f"file: sha256 must have {name}"


def _files_of(graph: ExportedGraph, graph_format: GraphFormat) -> tuple[str, ...]:
    if graph_format is GraphFormat.OPENVINO:
        return graph.file, graph.weights_file
    return *graph.modules.values(), WEIGHTS


def _openvino_faults(graph: ExportedGraph) -> Iterator[str]:
    if not graph.cost_s or min(graph.cost_s) < 1:
        yield "cost_s must have positive batch sizes"
    elif not all(math.isfinite(cost) and cost > 0 for cost in graph.cost_s.values()):
        yield "cost_s must be positive seconds"
    if not graph.file.endswith(_XML):
        yield f"file must end in {_XML}"
    if graph.modules or graph.weights:
        yield "modules and weights are of StableHLO, and must be empty"


def _stablehlo_faults(graph: ExportedGraph) -> Iterator[str]:
    if not graph.modules or min(graph.modules) < 1:
        yield "modules must have positive batch sizes"
    elif not all(name.endswith(_MODULE) for name in graph.modules.values()):
        yield f"modules must end in {_MODULE}"
    if graph.file or graph.cost_s:
        yield "file and cost_s are of OpenVINO, and must be empty"
