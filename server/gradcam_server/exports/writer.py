"""Writes an export: the graphs as OpenVINO IR and as a SavedModel, and the manifest."""

import logging
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import tensorflow as tf

from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.options import Precision
from gradcam_server.errors import CompilerError, DisconnectedLayerError, StartupError, quote
from gradcam_server.exports.agreement import measure
from gradcam_server.exports.files import hash_file
from gradcam_server.exports.manifest import MANIFEST, Agreement, ExportedGraph, Manifest
from gradcam_server.exports.quantize import quantize
from gradcam_server.exports.samples import load_samples
from gradcam_server.graphs.compilers import openvino as converter
from gradcam_server.graphs.compilers import openvino_runtime
from gradcam_server.graphs.compilers.autotune import check, compile_graph, time_executable
from gradcam_server.graphs.compilers.base import REFERENCE
from gradcam_server.graphs.compilers.openvino_runtime import INPUTS, openvino
from gradcam_server.graphs.executable import CompilationCounter
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.graphs.training_mode import find_training_mode
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.telemetry.versions import installed_versions

logger = logging.getLogger(__name__)

_PACKAGES = ("gradcam-server", "tensorflow", "tensorflow-cpu", "keras", "openvino", "nncf")
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
) -> Manifest:
    """Exports a model.

    Args:
        loaded: The model.
        served: The model as requests see it.
        keys: The graphs; the first is compared with float32.
        batch_sizes: The batch sizes to time.
        folder: The folder, which must not exist; it appears when all is written.
        precision: The precision of the network.
        samples: Folder of images to calibrate and compare with; None for the bundled photographs.
        min_correlation: The minimal mean correlation of the maps with those of float32.

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
        writer = _Writer(loaded, served, temporary, precision, samples)
        manifest = writer.write(keys, batch_sizes, min_correlation)
        temporary.rename(folder)
    except OSError as error:
        raise StartupError(f"cannot write the export {folder}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


class _Writer:
    def __init__(
        self,
        loaded: LoadedModel,
        served: ServedModel,
        folder: Path,
        precision: Precision,
        samples: Path | None,
    ) -> None:
        self._loaded, self._served = loaded, served
        self._folder, self._precision = folder, precision
        self._samples = (
            None if precision is Precision.FLOAT32 else load_samples(samples, served.input_size)
        )
        self._agreement: Agreement | None = None

    def write(
        self, keys: Sequence[GraphKey], batch_sizes: Sequence[int], min_correlation: float
    ) -> Manifest:
        self._check_model(keys[0])
        graphs = [
            self._write_graph(number, key, batch_sizes, min_correlation)
            for number, key in enumerate(keys)
        ]
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
            versions=installed_versions(_PACKAGES),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            sha256={name: hash_file(path) for name, path in files.items()},
            sizes={name: path.stat().st_size for name, path in files.items()},
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
        names = converter.output_names(graph)
        try:
            model = converter.convert(graph)
            exact, *_ = openvino_runtime.load_model(model, names, Precision.FLOAT32)
            check(graph, exact, Precision.FLOAT32)
            if self._precision is Precision.INT8 and self._samples:
                model = quantize(model, self._samples.calibration, key.max_targets)
            executable, *_ = openvino_runtime.load_model(model, names, self._precision)
        except StartupError:
            raise
        except Exception as error:
            raise StartupError(f"{key} cannot be exported: {quote(error)}") from error
        if self._samples and not number:
            self._agreement = measure(
                executable,
                exact,
                self._samples.comparison,
                key.max_targets,
                self._samples.origin,
            )
            _refuse(self._agreement, min_correlation)
        file = f"graph_{number}.xml"
        openvino.save_model(model, self._folder / file, compress_to_fp16=False)
        cost_s = {size: time_executable(graph, executable, size) for size in batch_sizes}
        logger.info("Exported %s in %s", key, self._precision)
        return ExportedGraph(key, file, names, cost_s)

    def _write_saved_model(self, key: GraphKey) -> None:
        """Writes the default graph in float32 for TensorFlow Serving."""
        graph = ExplanationGraph(self._loaded, key, CompilationCounter())
        names = converter.output_names(graph)

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
