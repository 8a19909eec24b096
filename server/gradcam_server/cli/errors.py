"""What commands print of errors. Importing it imports no client: ``gradcam serve`` needs none."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import click

from gradcam_server.errors import ExplanationServerError

_SERVER_PACKAGES = (
    *("tensorflow", "keras", "cv2", "PIL", "grpc_reflection", "h5py", "prometheus_client"),
)

# Errors of gRPC and of servers, as regular expressions, and what to do about them.
_REMEDIES = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server's certificate is not trusted; --tls-ca names the authorities to trust",
    ),
    (
        "Hostname Verification Check failed",
        "the server's certificate is not for this address; --tls-server-name gives the name in it",
    ),
    ("WRONG_VERSION_NUMBER", "the server speaks plain text, not TLS"),
    (
        "Failed to create security handshaker",
        "the files of --tls-ca, --tls-cert and --tls-key are broken, or do not belong together",
    ),
    (
        "failed to connect.*(Socket closed|Connection reset|Broken pipe)",
        "the server closed the connection; it may need TLS (--tls, --tls-ca) or a client's "
        "certificate (--tls-cert, --tls-key)",
    ),
    ("there is no token", "the server needs a token; --token-file names the file with it"),
)


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turns errors with a clear message into that message and exit status 1, in a command."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _SERVER_PACKAGES:
            raise
        raise click.ClickException(_needs_server_extra(error.name or "")) from error
    except _expected_errors() as error:
        raise click.ClickException(readable(str(error))) from error


def _expected_errors() -> tuple[type[Exception], ...]:
    """Returns the classes of errors whose text says enough. Python asks once there is an error."""
    from gradcam_client import GradCamError

    return ExplanationServerError, GradCamError


def _needs_server_extra(package: str) -> str:
    context = click.get_current_context()
    has_server_option = any(option.name == "server" for option in context.command.params)
    remote = "; with --server HOST:PORT it uses a running server instead" * has_server_option
    return (
        f"{context.command_path} needs the packages of the server (here {package} is missing): "
        f"pip install 'gradcam-server[cpu]', or [gpu] for GPUs{remote}"
    )


def readable(text: str) -> str:
    """Returns an error's text, after the remedy if there is one in ``_REMEDIES``."""
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, text):
            return f"{remedy} ({text})"
    return text
