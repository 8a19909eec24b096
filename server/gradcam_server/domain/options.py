"""Enums of the settings and of models."""

from enum import StrEnum
from typing import Literal

AUTO: Literal["auto"] = "auto"

ComputeStreams = int | Literal["auto"]
"""The number of streams; 0 for as many as OpenVINO advises, ``AUTO`` for the fastest."""


class Compiler(StrEnum):
    """The compiler of the graph; ``AUTO`` is the fastest."""

    AUTO = "auto"
    XLA = "xla"
    TENSORFLOW = "tensorflow"
    OPENVINO = "openvino"
    PJRT = "pjrt"


class GraphFormat(StrEnum):
    """The format of the graphs of an export."""

    OPENVINO = "openvino"
    """OpenVINO's own, for batches of any size on CPUs."""
    STABLEHLO = "stablehlo"
    """XLA's portable format: a module for each batch size, for CPUs and GPUs."""


class Precision(StrEnum):
    """The type of numbers that the network is computed in. The maps are computed in float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"


class Outputs(StrEnum):
    """The kind of numbers that a model puts out."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    PROBABILITIES = "probabilities"
