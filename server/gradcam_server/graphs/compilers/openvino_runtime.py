"""OpenVINO's runtime on CPUs: runs a model that was converted from a graph. Free of TensorFlow."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from gradcam_server.domain.graph_io import INPUTS
from gradcam_server.domain.options import Precision
from gradcam_server.graphs.executable import Array, Executable, Executables
from gradcam_server.graphs.threads import compute_threads, has_all_cores

# Without it OpenVINO reports imports and conversions to Google Analytics.
sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))
# OpenVINO does without its converter, which takes longer to import than all the rest; the module
# openvino beside this one imports it.
_CONVERTER = "openvino.tools.ovc"
sys.modules.setdefault(_CONVERTER, cast("ModuleType", None))

import openvino as openvino  # noqa: E402 - other modules import it from here, after the lines above

if sys.modules[_CONVERTER] is None:
    del sys.modules[_CONVERTER]

# The float32 layers of int8 models stay float32: by default some CPUs compute them in bfloat16.
_HINTS = {
    Precision.FLOAT32: "f32",
    Precision.BFLOAT16: "bf16",
    Precision.FLOAT16: "f16",
    Precision.INT8: "f32",
}

_XML = b"<?xml "


def read_model(file: Path, weights: Path) -> Any:
    """Reads a model in OpenVINO's own format.

    Args:
        file: The operations, as XML.
        weights: The weights, which are mapped into memory, not read.

    Returns:
        An ``openvino.Model``.

    Raises:
        ValueError: The file is not XML. OpenVINO goes by a file's content, not by its name, and
            models of other formats can make it open further files.
        RuntimeError: OpenVINO cannot read the file.
    """
    with file.open("rb") as content:
        if content.read(len(_XML)) != _XML:
            raise ValueError(f"{file} is not XML")
    return openvino.Core().read_model(file, weights)


class CpuModel:
    """A model that is compiled for the CPU; see ``streams.Divisible``. It is also ``Prepared``.

    Args:
        model: An ``openvino.Model`` of any batch size, with inputs called ``INPUTS``.
        output_names: The outputs to return, by name.
        precision: The precision of the network.
    """

    def __init__(self, model: Any, output_names: Sequence[str], precision: Precision) -> None:
        self._model, self._output_names, self._precision = model, output_names, precision
        compiled = self._compile({"PERFORMANCE_HINT": "LATENCY"})
        self.whole = _executable(compiled, output_names)
        """Runs batches of any size on the whole CPU, for one caller at a time."""

    def __call__(self, _: int) -> Executables:
        """Returns the executable of the whole CPU, for any batch size."""
        return (self.whole,)

    def divide(self, streams: int) -> Executables:
        """Compiles the model once more, for streams: OpenVINO's models do not share weights.

        Args:
            streams: Their number; 0 leaves it to OpenVINO.

        Returns:
            An executable for each stream, for batches of any size and one caller at a time.
        """
        many = {"NUM_STREAMS": streams} if streams else {"PERFORMANCE_HINT": "THROUGHPUT"}
        compiled = self._compile(many)
        count = compiled.get_property("NUM_STREAMS")
        return [_executable(compiled, self._output_names) for _ in range(count)]

    def _compile(self, properties: Mapping[str, Any]) -> Any:
        usual = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
            "INFERENCE_NUM_THREADS": compute_threads(),
            "ENABLE_CPU_PINNING": has_all_cores(),
        }
        return openvino.Core().compile_model(self._model, "CPU", {**usual, **properties})


def _executable(compiled: Any, output_names: Sequence[str]) -> Executable:
    request = compiled.create_infer_request()

    def run(*arrays: Array) -> Sequence[Array]:
        results = request.infer(dict(zip(INPUTS, arrays, strict=True)), share_inputs=True)
        return [results[name] for name in output_names]

    return run


def supports(precision: Precision) -> bool:
    """Returns whether this CPU has instructions for a precision."""
    capability = {Precision.BFLOAT16: "BF16", Precision.FLOAT16: "FP16"}.get(precision)
    return not capability or capability in openvino.Core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    )
