"""OpenVINO's runtime on CPUs: runs a model that came from a graph. Free of TensorFlow."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from gradcam_server.domain.options import Precision
from gradcam_server.graphs.executable import Array, Executable, Executables
from gradcam_server.graphs.threads import compute_streams, compute_threads

# Importing OpenVINO and converting would be reported to Google Analytics.
sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))

import openvino as openvino  # noqa: E402 - for those who must not be the first

INPUTS = ("images", "classes", "against")
OUTPUTS = ("logits", "probabilities", "chosen", "scores")  # and the maps of each layer

# int8 models keep the rest in float32, which some CPUs would compute in bfloat16 unasked.
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
        weights: The weights; it is mapped into memory, not read.

    Returns:
        An ``openvino.Model``.

    Raises:
        ValueError: The file is no XML. OpenVINO goes by what is in a file, not by its name, and
            models of other formats may have it open further files.
        RuntimeError: OpenVINO cannot read it.
    """
    with file.open("rb") as content:
        if content.read(len(_XML)) != _XML:
            raise ValueError(f"{file} is no XML")
    return openvino.Core().read_model(file, weights)


def load_model(model: Any, output_names: Sequence[str], precision: Precision) -> Executables:
    """Compiles a model for the CPU.

    Args:
        model: An ``openvino.Model`` of any batch size, with inputs called ``INPUTS``.
        output_names: The outputs to return, by name.
        precision: What the network is computed in.

    Returns:
        What runs batches of any size, each for one caller at a time: the whole CPU, and, if
        there is more than one, its streams.
    """
    core = openvino.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": compute_threads(),
    }
    whole = core.compile_model(model, "CPU", {**properties, "PERFORMANCE_HINT": "LATENCY"})
    executables = [_executable(whole, output_names)]
    if (wanted := compute_streams()) != 1:
        many = {"NUM_STREAMS": wanted} if wanted else {"PERFORMANCE_HINT": "THROUGHPUT"}
        parts = core.compile_model(model, "CPU", {**properties, **many})
        if (count := parts.get_property("NUM_STREAMS")) > 1:
            executables += [_executable(parts, output_names) for _ in range(count)]
    return executables


def _executable(compiled: Any, output_names: Sequence[str]) -> Executable:
    request = compiled.create_infer_request()

    def run(*arrays: Array) -> Sequence[Array]:
        results = request.infer(dict(zip(INPUTS, arrays, strict=True)), share_inputs=True)
        return [results[name] for name in output_names]

    return run


def supports(precision: Precision) -> bool:
    """Returns whether this CPU computes in a precision faster than in float32."""
    capability = {Precision.BFLOAT16: "BF16", Precision.FLOAT16: "FP16"}.get(precision)
    return not capability or capability in openvino.Core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    )
