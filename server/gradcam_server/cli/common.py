"""What commands share: classes, probabilities, and errors for scripts."""

import numpy as np
from numpy.typing import NDArray

from gradcam_client import GradCamError, ImageExplanation
from gradcam_client.requests import MANY_PASS_METHODS, METHODS
from gradcam_server.cli.errors import readable

ONE_PASS_METHODS = tuple(name for name in METHODS if name not in MANY_PASS_METHODS)
ALL_CLASSES = 2**31 - 1  # more than any model has


def error_as_json(error: Exception | None) -> dict[str, str]:
    """Returns an error for scripts: its gRPC code or type, and its text."""
    code = error.code.name if isinstance(error, GradCamError) else type(error).__name__
    return {"code": code, "message": readable(str(error))}


def class_of(text: str) -> int | str:
    """Returns the class that a user typed: an index, or a name or WordNet id."""
    return int(text) if text.isdecimal() else text


def probabilities_of(answer: ImageExplanation) -> NDArray[np.float64]:
    """Returns the probabilities of all classes, shape (classes,).

    They are the server's: logits do not say whether a softmax made the probabilities.

    Args:
        answer: The answer to a request with a ``prediction_count`` of ``ALL_CLASSES``.
    """
    probabilities = np.empty(len(answer.predictions))
    for prediction in answer.predictions:
        probabilities[prediction.index] = prediction.probability
    return probabilities
