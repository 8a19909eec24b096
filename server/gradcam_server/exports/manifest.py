"""What an export holds: a JSON file beside its graphs, with the hashes of all files."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradcam_server.config import Precision
from gradcam_server.errors import StartupError
from gradcam_server.graph_io import GraphKey
from gradcam_server.labels import ClassLabel, ClassLabels
from gradcam_server.layers import Extent, LayerInfo
from gradcam_server.models.preprocessing import Preprocessing
from gradcam_server.requests import Method, ScoreType

MANIFEST = "gradcam.json"
FORMAT = 1


@dataclass(frozen=True)
class Agreement:
    """How the answers of a reduced precision agree with those of float32.

    Attributes:
        image_count: Samples compared; none of them was used to calibrate.
        top1_percent: Images whose best class is the same, in %.
        correlation_mean: Pearson's, of the map of the best class with that in float32.
        correlation_percentiles: By percentile (1, 5, 25, 50).
        correlation_worst: The least of them.
        largest_logit_difference: In units of the logits.
        images: Where the images came from, for people.
    """

    image_count: int
    top1_percent: float
    correlation_mean: float
    correlation_percentiles: dict[str, float]
    correlation_worst: float
    largest_logit_difference: float
    images: str


@dataclass(frozen=True)
class ExportedGraph:
    """A graph as OpenVINO IR.

    Attributes:
        key: What it computes.
        file: Its XML file, in the folder; the weights lie beside it (.bin).
        outputs: Names of its outputs, in the order of ``compiled.Executable``.
        cost_s: Seconds that a batch of each size took where it was exported.
    """

    key: GraphKey
    file: str
    outputs: tuple[str, ...]
    cost_s: dict[int, float]


@dataclass(frozen=True)
class Manifest:
    """An export.

    Attributes:
        name: The model's name when it was exported.
        weights: Where its weights come from, for people.
        random_weights: Whether they are random.
        input_size: (height, width) in pixels.
        preprocessing: Part of the graph; kept for people.
        layers: Of the network.
        default_layer: The one that is explained by default.
        labels: The classes.
        precision: What the network is computed in.
        max_targets: Most classes of one request.
        graphs: The compiled graphs.
        agreement: With float32; None for float32.
        versions: Of the packages that made it.
        created: When, in UTC (ISO 8601).
        sha256: Of each file, by its path in the folder.
        preprocessing_declared: Whether it was declared when the model was exported, or known;
            older exports do not say.
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

    def to_json(self) -> str:
        """Writes it."""
        document = {
            "format": FORMAT,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "layers": [_layer_row(layer) for layer in self.layers],
            "labels": [[label.name, *label.aliases] for label in self.labels.labels],
            "graphs": [dataclasses.asdict(graph) for graph in self.graphs],
            "agreement": self.agreement and dataclasses.asdict(self.agreement),
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def is_export(folder: Path) -> bool:
    """Returns whether a path is the folder of an export."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest, and compares all files with it.

    Raises:
        StartupError: It cannot be read, is of another format, or a file is not the one that
            was exported.
    """
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document.pop("format")
        if found != FORMAT:
            raise StartupError(
                f"{path} has format {found}; this version reads format {FORMAT}: export the model "
                "again"
            )
        manifest = _parse(document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartupError(f"{path} is not a manifest of gradcam export: {error!r}") from error
    for name, expected in manifest.sha256.items():
        file = folder / name
        try:
            actual = hash_file(file)
        except OSError as error:
            raise StartupError(f"the export {folder} is not whole: {error}") from error
        if actual != expected:
            raise StartupError(
                f"{file} is not the file that was exported (its SHA-256 differs): copy the whole "
                "folder again, or export again"
            )
    return manifest


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _layer_row(layer: LayerInfo) -> list[Any]:
    """Returns a layer's values; the extent only if it has one, as in manifests before extents."""
    extent = [] if layer.extent is None else [dataclasses.astuple(layer.extent)]
    return [layer.name, layer.type, layer.output_shape, layer.explainable, *extent]


def _parse(document: dict[str, Any]) -> Manifest:
    agreement = document["agreement"]
    return Manifest(
        **{
            **document,
            "input_size": _pair(document["input_size"]),
            "preprocessing": Preprocessing(document["preprocessing"]),
            "layers": tuple(
                LayerInfo(name, kind, tuple(shape), explainable, *(Extent(*one) for one in extent))
                for name, kind, shape, explainable, *extent in document["layers"]
            ),
            "labels": ClassLabels(
                [ClassLabel(name, tuple(aliases)) for name, *aliases in document["labels"]]
            ),
            "precision": Precision(document["precision"]),
            "graphs": tuple(map(_parse_graph, document["graphs"])),
            "agreement": agreement and Agreement(**agreement),
        }
    )


def _parse_graph(document: dict[str, Any]) -> ExportedGraph:
    key = document["key"]
    return ExportedGraph(
        GraphKey(
            **{
                **key,
                "layers": tuple(key["layers"]),
                "method": Method(key["method"]),
                "score_type": ScoreType(key["score_type"]),
            }
        ),
        document["file"],
        tuple(document["outputs"]),
        {int(size): float(seconds) for size, seconds in document["cost_s"].items()},
    )


def _pair(values: list[int]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)
