"""Writes the graphs of an export in OpenVINO's format."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gradcam_server.domain.options import Precision
from gradcam_server.exports.manifest import ExportedGraph
from gradcam_server.exports.quantize import quantize
from gradcam_server.exports.samples import Samples
from gradcam_server.graphs.compilers import openvino as converter
from gradcam_server.graphs.compilers import openvino_runtime
from gradcam_server.graphs.compilers.autotune import check, make_noise
from gradcam_server.graphs.compilers.openvino_runtime import openvino
from gradcam_server.graphs.executable import Executable
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.graphs.timing import seconds_by_size

logger = logging.getLogger(__name__)


class OpenVinoWriter:
    """Writes graphs; see ``GraphWriter``.

    Args:
        folder: The folder of the export.
        precision: The precision of the network.
        samples: The images that calibrate int8.
    """

    packages = ("openvino", "nncf")

    def __init__(self, folder: Path, precision: Precision, samples: Samples | None) -> None:
        self._folder, self._precision, self._samples = folder, precision, samples

    def add(
        self, number: int, graph: ExplanationGraph, batch_sizes: Sequence[int]
    ) -> tuple[ExportedGraph, Executable, Callable[[], Executable]]:
        """Converts and writes a graph; the reference is OpenVINO in float32."""
        key, names = graph.key, converter.output_names(graph)
        model = converter.convert(graph)
        exact = openvino_runtime.CpuModel(model, names, Precision.FLOAT32).whole
        check(graph, exact, Precision.FLOAT32)
        if self._precision is Precision.INT8 and self._samples:
            model = quantize(model, self._samples.calibration, key.max_targets)
        executable = openvino_runtime.CpuModel(model, names, self._precision).whole
        file = f"graph_{number}.xml"
        openvino.save_model(model, self._folder / file, compress_to_fp16=False)
        # All servers of the export go by these times.
        cost_s = seconds_by_size(
            dict.fromkeys(batch_sizes, executable), partial(make_noise, graph), turns=4
        )
        return ExportedGraph(key, file, names, cost_s), executable, lambda: exact

    def finish(self) -> None:
        """Writes nothing: each graph has its weights."""
