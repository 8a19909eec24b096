"""Enums of the settings and of models."""

from enum import StrEnum


class Compiler(StrEnum):
    """The compiler of the graph; ``AUTO`` is the fastest."""

    AUTO = "auto"
    XLA = "xla"
    TENSORFLOW = "tensorflow"
    OPENVINO = "openvino"


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
