"""``gradcam layers``."""

import click

from gradcam_server.cli.connection import Connection, check_server_options, connection_options
from gradcam_server.cli.errors import errors_for_people

_HEADINGS = ("LAYER", "TYPE", "OUTPUT SHAPE", "")


@click.command()
@click.option(
    "--model",
    default="",
    help="Name of the model; without --server also NAME=PATH of a file.  [default: resnet50, or "
    "the server's first model]",
)
@click.option(
    "--custom-objects",
    multiple=True,
    metavar="MODULE",
    help="Python module that registers custom classes of a model from a file.",
)
@click.option("--server", metavar="HOST:PORT", help="List the layers of a model on this server.")
@connection_options()
def layers(
    model: str, custom_objects: tuple[str, ...], server: str | None, connection: Connection
) -> None:
    """List a model's layers, and say which can be explained.

    The default is the last layer before the global pooling whose output has the shape (batch,
    height, width, channels).
    """
    check_server_options(server, model, ["custom_objects"])
    with errors_for_people():
        if server:
            with connection.client(server) as client:
                info = client.get_model(model)
        else:
            from gradcam_server.cli.local import describe_model

            info = describe_model(model, custom_objects)
    rows = [_HEADINGS]
    for layer in info.layers:
        shape = ", ".join("None" if size < 0 else str(size) for size in layer.output_shape)
        use = "default" if layer.name == info.default_layer else "candidate"
        rows.append((layer.name, layer.type, f"({shape})", use if layer.explainable else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
