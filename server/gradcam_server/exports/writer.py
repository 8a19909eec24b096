"""Writes an export: the graphs in a format, for OpenVINO also a SavedModel, and the manifest."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import tensorflow as tf

from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import INPUTS, GraphKey, output_names
from gradcam_server.domain.options import GraphFormat, Precision
from gradcam_server.errors import CompilerError, DisconnectedLayerError, StartupError, quote
from gradcam_server.exports.agreement import measure
from gradcam_server.exports.files import hash_file
from gradcam_server.exports.manifest import MANIFEST, Agreement, ExportedGraph, Manifest
from gradcam_server.exports.samples import load_samples
from gradcam_server.graphs.compilers.autotune import compile_graph
from gradcam_server.graphs.compilers.base import REFERENCE
from gradcam_server.graphs.executable import CompilationCounter, Executable
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.graphs.training_mode import find_training_mode
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.telemetry.versions import installed_versions

logger = logging.getLogger(__name__)

_PACKAGES = ("gradcam-server", "tensorflow", "tensorflow-cpu", "keras")
SAVED_MODEL, SIGNATURE = "saved_model", "explain"
_CHECKED_SIZES = (2,)


def write(
    loaded: LoadedModel,
    served: ServedModel,
    keys: Sequence[GraphKey],
    batch_sizes: Sequence[int],
    folder: Path,
    precision: Precision = Precision.FLOAT32,
    samples: Path | None = None,
    min_correlation: float = 0.0,
    graph_format: GraphFormat = GraphFormat.OPENVINO,
) -> Manifest:
    """Exports a model.

    Args:
        loaded: The model.
        served: The model as requests see it.
        keys: The graphs; the first is compared with float32.
        batch_sizes: The batch sizes to time; of StableHLO, to write.
        folder: The folder, which must not exist; it appears when all is written.
        precision: The precision of the network.
        samples: Folder of images to calibrate and compare with; None for the bundled photographs.
        min_correlation: The minimal mean correlation of the maps with those of float32.
        graph_format: The format of the graphs.

    Returns:
        The manifest.

    Raises:
        StartupError: A graph cannot be exported, or its maps correlate too little with float32's.
    """
    if folder.exists():
        raise StartupError(f"{folder} exists already: remove it, or choose another folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        writer = _Writer(loaded, served, temporary, precision, samples, graph_format)
        manifest = writer.write(keys, batch_sizes, min_correlation)
        temporary.rename(folder)
    except OSError as error:
        raise StartupError(f"cannot write the export {folder}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


class GraphWriter(Protocol):
    """Writes graphs in one format."""

    @property
    def packages(self) -> Sequence[str]:
        """The packages whose versions are kept in the manifest."""
        ...

    def add(
        self, number: int, graph: ExplanationGraph, batch_sizes: Sequence[int]
    ) -> tuple[ExportedGraph, Executable, Callable[[], Executable]]:
        """Converts, checks and writes a graph.

        Args:
            number: Its place in the manifest.
            graph: The graph.
            batch_sizes: The batch sizes, ascending.

        Returns:
            Its row in the manifest; its executable, and a function that makes the reference in
            float32, both for single images.

        Raises:
            CompilerError: The format cannot express the graph, or its answers differ from
                TensorFlow's.
        """
        ...

    def finish(self) -> None:
        """Writes what all graphs share."""
        ...


class _Writer:
    def __init__(
        self,
        loaded: LoadedModel,
        served: ServedModel,
        folder: Path,
        precision: Precision,
        samples: Path | None,
        graph_format: GraphFormat,
    ) -> None:
        self._loaded, self._served = loaded, served
        self._folder, self._precision, self._format = folder, precision, graph_format
        self._agreement: Agreement | None = None
        self._is_openvino = graph_format is GraphFormat.OPENVINO
        is_compared = precision is not Precision.FLOAT32 or not self._is_openvino
        self._samples = load_samples(samples, served.input_size) if is_compared else None
        self._graphs = self._graph_writer()

    def _graph_writer(self) -> GraphWriter:
        if self._is_openvino:
            from gradcam_server.exports.openvino_writer import OpenVinoWriter

            return OpenVinoWriter(self._folder, self._precision, self._samples)
        from gradcam_server.exports.stablehlo_writer import StableHloWriter

        return StableHloWriter(self._folder, self._precision)

    def write(
        self, keys: Sequence[GraphKey], batch_sizes: Sequence[int], min_correlation: float
    ) -> Manifest:
        self._check_model(keys[0])
        graphs = [
            self._write_graph(number, key, batch_sizes, min_correlation)
            for number, key in enumerate(keys)
        ]
        self._graphs.finish()
        if self._is_openvino:
            self._write_saved_model(keys[0])
        served, loaded = self._served, self._loaded
        files = {
            path.relative_to(self._folder).as_posix(): path
            for path in sorted(self._folder.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(
            name=served.name,
            weights=served.weights,
            random_weights=served.random_weights,
            input_size=served.input_size,
            preprocessing=loaded.preprocessing,
            preprocessing_declared=loaded.preprocessing_declared,
            layers=served.layers,
            default_layer=served.default_layer,
            labels=served.labels,
            precision=self._precision,
            max_targets=max(key.max_targets for key in keys),
            graphs=tuple(graphs),
            agreement=self._agreement,
            versions=installed_versions((*_PACKAGES, *self._graphs.packages)),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            sha256={name: hash_file(path) for name, path in files.items()},
            sizes={name: path.stat().st_size for name, path in files.items()},
            graph_format=self._format,
        )
        (self._folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return manifest

    def _check_model(self, key: GraphKey) -> None:
        """Refuses a model that runs in training mode, or that TensorFlow cannot compile."""
        loaded = self._loaded
        graph = ExplanationGraph(loaded, key, CompilationCounter())
        try:
            compiled = compile_graph(graph, _CHECKED_SIZES, REFERENCE)
        except (CompilerError, DisconnectedLayerError) as error:
            raise StartupError(f"{key} cannot be exported: {error}") from error
        if reason := find_training_mode(loaded, compiled):
            raise StartupError(reason)

    def _write_graph(
        self, number: int, key: GraphKey, batch_sizes: Sequence[int], min_correlation: float
    ) -> ExportedGraph:
        graph = ExplanationGraph(self._loaded, key, CompilationCounter())
        try:
            exported, executable, make_reference = self._graphs.add(number, graph, batch_sizes)
        except StartupError:
            raise
        except Exception as error:
            raise StartupError(f"{key} cannot be exported: {quote(error)}") from error
        if self._samples and not number:
            self._agreement = measure(
                executable,
                make_reference(),
                self._samples.comparison,
                key.max_targets,
                self._samples.origin,
            )
            _refuse(self._agreement, min_correlation)
        logger.info("Exported %s in %s", key, self._precision)
        return exported

    def _write_saved_model(self, key: GraphKey) -> None:
        """Writes the default graph in float32 for TensorFlow Serving."""
        graph = ExplanationGraph(self._loaded, key, CompilationCounter())
        names = output_names(len(key.layers))

        def explain(
            images: tf.Tensor, classes: tf.Tensor, against: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            return dict(zip(names, graph.explain(images, classes, against), strict=True))

        signature = [
            tf.TensorSpec(spec.shape, spec.dtype, name)
            for spec, name in zip(graph.signature(None), INPUTS, strict=True)
        ]
        module = tf.Module()
        module.explain = tf.function(explain, input_signature=signature, autograph=False)
        # A SavedModel must own the variables that its functions use.
        module.weights = list(module.explain.get_concrete_function().graph.variables)
        tf.saved_model.save(
            module, str(self._folder / SAVED_MODEL), signatures={SIGNATURE: module.explain}
        )


def _refuse(agreement: Agreement, min_correlation: float) -> None:
    if agreement.correlation_mean < min_correlation:
        raise StartupError(
            f"the maps correlate by {agreement.correlation_mean:.4f} with those of float32 (the "
            f"worst by {agreement.correlation_worst:.4f}, best class the same for "
            f"{agreement.top1_percent:g} %), and at least {min_correlation:g} is wanted: "
            "calibrate on images like those of your requests (--images), lower "
            "--least-correlation, or use --force"
        )
