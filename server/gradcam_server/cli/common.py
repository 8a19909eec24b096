"""What commands share: errors that people can act on, classes, and probabilities."""

from collections.abc import Iterator
from contextlib import contextmanager

import click
import numpy as np
from numpy.typing import NDArray

from gradcam_client import GradCamError, ImageExplanation
from gradcam_client.requests import MANY_PASS_METHODS, METHODS
from gradcam_server.cli.connection import readable
from gradcam_server.errors import ExplanationServerError

ONE_PASS_METHODS = tuple(name for name in METHODS if name not in MANY_PASS_METHODS)
ALL_CLASSES = 2**31 - 1  # more than any model has
_SERVER_PACKAGES = (
    *("tensorflow", "keras", "cv2", "PIL", "grpc_reflection", "h5py", "prometheus_client"),
)


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turns errors with a clear message into that message and exit status 1, in a command."""
    try:
        yield
    except (ExplanationServerError, GradCamError) as error:
        raise click.ClickException(readable(str(error))) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _SERVER_PACKAGES:
            raise
        raise click.ClickException(_needs_server_extra(error.name or "")) from error


def _needs_server_extra(package: str) -> str:
    context = click.get_current_context()
    has_server_option = any(option.name == "server" for option in context.command.params)
    remote = "; with --server HOST:PORT it uses a running server instead" * has_server_option
    return (
        f"{context.command_path} needs the packages of the server (here {package} is missing): "
        f"pip install 'gradcam-server[cpu]', or [gpu] for GPUs{remote}"
    )


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
