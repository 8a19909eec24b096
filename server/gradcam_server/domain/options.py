"""Named choices of the settings and of models."""

from enum import StrEnum


class Compiler(StrEnum):
    """What runs the graph."""

    AUTO = "auto"
    XLA = "xla"
    TENSORFLOW = "tensorflow"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """What the network is computed in. The maps are computed in float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"


class Outputs(StrEnum):
    """What a model's outputs are."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    PROBABILITIES = "probabilities"
