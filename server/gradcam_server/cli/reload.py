"""``gradcam reload``."""

import click
import grpc

from gradcam.admin.v1 import admin_service_pb2 as pb
from gradcam.admin.v1 import admin_service_pb2_grpc as pb_grpc
from gradcam_client.unreachable import explain
from gradcam_server.cli.connection import Connection, connection_options
from gradcam_server.cli.errors import readable


@click.command()
@click.argument("address", metavar="HOST:PORT")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds.")
# An --admin-port has no TLS: variables that are set for the other port would break the connection.
@connection_options(tls_variables=False)
def reload(address: str, timeout_s: float, connection: Connection) -> None:
    """Make a server reload its configuration, models and tokens; HOST:PORT is its --admin-port.

    It needs an admin's token if the server has tokens, and TLS only through a proxy. It waits until
    the new models serve. The exit status is 0 if they do; otherwise it is 1, and the old models
    continue to serve.
    """
    with connection.channel(address) as channel:
        try:
            done = pb_grpc.AdminServiceStub(channel).Reload(
                pb.ReloadRequest(), timeout=timeout_s, metadata=connection.metadata
            )
        except grpc.RpcError as error:
            details = error.details() or ""
            text = explain(details, address) or readable(details)
            raise click.ClickException(f"{error.code().name}: {text}") from error
    for model in done.models:
        click.echo(":".join(filter(None, (model.name, model.version))))
    for setting in done.unchanged_settings:
        click.echo(f"{setting} has changed, which takes effect after a restart", err=True)
