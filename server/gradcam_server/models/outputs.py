"""What the outputs of a model from a file are; a setting, for models whose outputs do not tell."""

from enum import StrEnum


class Outputs(StrEnum):
    """What a model's outputs are."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    PROBABILITIES = "probabilities"
