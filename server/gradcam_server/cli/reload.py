"""``gradcam reload``."""

import os
from pathlib import Path

import click
import grpc

from gradcam.admin.v1 import admin_service_pb2 as pb
from gradcam.admin.v1 import admin_service_pb2_grpc as pb_grpc


@click.command()
@click.argument("address", metavar="HOST:PORT")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File that holds an admin's token and nothing else. [default: the variable GRADCAM_TOKEN]",
)
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds.")
def reload(address: str, token_file: Path | None, timeout_s: float) -> None:
    """Let a server read its configuration, models and tokens again; HOST:PORT is its --admin-port.

    Waits until the new models serve. Exit status 0 if they do; 1 if not, and then the old
    ones go on.
    """
    token = token_file.read_text() if token_file else os.environ.get("GRADCAM_TOKEN", "")
    metadata = (("authorization", f"Bearer {token.strip()}"),) if token.strip() else ()
    with grpc.insecure_channel(address) as channel:
        try:
            done = pb_grpc.AdminServiceStub(channel).Reload(
                pb.ReloadRequest(), timeout=timeout_s, metadata=metadata
            )
        except grpc.RpcError as error:
            raise click.ClickException(f"{error.code().name}: {error.details()}") from error
    for model in done.models:
        click.echo(":".join(filter(None, (model.name, model.version))))
    for setting in done.unchanged_settings:
        click.echo(f"{setting} has changed but needs a restart", err=True)
