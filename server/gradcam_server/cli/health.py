"""``gradcam health``."""

import click

from gradcam_client import GradCamError
from gradcam_server.cli.connection import Connection, connection_options
from gradcam_server.cli.errors import readable


@click.command()
@click.argument("server", metavar="HOST:PORT")
@click.option("--service", default="", help="A service's full name; empty is the whole server.")
@click.option("--timeout", "timeout_s", default=5.0, show_default=True, help="Seconds.")
@connection_options()
def health(server: str, service: str, timeout_s: float, connection: Connection) -> None:
    """Ask a server whether it serves. The exit status is 0 if it does, else 1.

    For health checks of containers. It needs no token, but with mutual TLS a certificate.
    """
    try:
        with connection.client(server) as client:
            status = client.health(service, timeout_s=timeout_s)
    except GradCamError as error:
        text = readable(str(error))
        raise click.ClickException(text if server in text else f"{server}: {text}") from error
    click.echo(status)
    raise SystemExit(0 if status == "SERVING" else 1)
