"""What the commands share: errors that people can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from gradcam_client import GradCamError
from gradcam_server.cli.connection import readable
from gradcam_server.errors import ExplanationServerError

_SERVER_PACKAGES = (
    *("tensorflow", "keras", "cv2", "PIL", "grpc_reflection", "h5py", "prometheus_client"),
)


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turns errors with a clear message into that message and exit status 1."""
    try:
        yield
    except (ExplanationServerError, GradCamError) as error:
        raise click.ClickException(readable(str(error))) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _SERVER_PACKAGES:
            raise
        raise click.ClickException(
            f"this needs {error.name}, which comes with the server: "
            "pip install 'gradcam-server[cpu]' (or [gpu]). "
            "To ask a running server, use gradcam explain --server HOST:PORT."
        ) from error
