"""What the commands share: options, and errors that people can act on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from gradcam_client import GradCamError
from gradcam_server.errors import ExplanationServerError

_SERVER_PACKAGES = ("tensorflow", "keras", "cv2", "PIL", "grpc_reflection", "h5py")

_F = TypeVar("_F", bound=Callable[..., Any])


def model_options(command: _F) -> _F:
    """Adds the options that choose a model to explain in this process."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Seed of random weights."),
        click.option(
            "--weights",
            default="imagenet",
            show_default=True,
            metavar="imagenet|random|FILE",
            help="Weights of the model, without --server.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turns errors with a clear message into that message and exit status 1."""
    try:
        yield
    except (ExplanationServerError, GradCamError) as error:
        raise click.ClickException(str(error)) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _SERVER_PACKAGES:
            raise
        raise click.ClickException(
            f"this needs {error.name}, which comes with the server: "
            "pip install 'gradcam-server[cpu]' (or [gpu]). "
            "To ask a running server, use gradcam explain --server HOST:PORT."
        ) from error
