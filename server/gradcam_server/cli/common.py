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
    asks = any(option.name == "server" for option in context.command.params)
    elsewhere = "; with --server HOST:PORT it asks a running server instead" if asks else ""
    return (
        f"{context.command_path} needs what comes with the server (here {package} is missing): "
        f"pip install 'gradcam-server[cpu]', or [gpu] for GPUs{elsewhere}"
    )
