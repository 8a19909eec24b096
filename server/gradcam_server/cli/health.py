"""``gradcam health``."""

import click

from gradcam_client import Client, GradCamError


@click.command()
@click.argument("server", metavar="HOST:PORT")
@click.option("--service", default="", help="A service's full name; empty is the whole server.")
@click.option("--timeout", "timeout_s", default=5.0, show_default=True, help="Seconds.")
def health(server: str, service: str, timeout_s: float) -> None:
    """Ask a server whether it serves. Exit status 0 if so, 1 if not: for container checks."""
    try:
        with Client(server) as client:
            status = client.health(service, timeout_s=timeout_s)
    except GradCamError as error:
        raise click.ClickException(f"{server}: {error}") from error
    click.echo(status)
    raise SystemExit(0 if status == "SERVING" else 1)
