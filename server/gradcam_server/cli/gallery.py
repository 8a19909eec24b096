"""``gradcam gallery``."""

from pathlib import Path

import click

from gradcam_server.cli.batch import needs_pyarrow
from gradcam_server.cli.errors import errors_for_people


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=Path, metavar="OUTPUT")
@click.option(
    *("-o", "--output"),
    type=Path,
    metavar="FILE",
    help="The page.  [default: _gallery.html in OUTPUT]",
)
@click.option("--count", type=click.IntRange(1, 500), default=12, help="Images in each section.")
@click.option(
    "--inputs",
    metavar="INPUT",
    help="The images' location, if it is no longer the INPUT of gradcam batch.",
)
def gallery(folder: Path, output: Path | None, count: int, inputs: str | None) -> None:
    """Write a page of the most unusual and the most confident images of gradcam batch.

    The page embeds its pictures: the overlays of --overlays, or overlays drawn now from the images
    and their maps.
    """
    with errors_for_people():
        needs_pyarrow()
        from gradcam_server.batch.gallery import write_gallery

        click.echo(f"wrote {write_gallery(folder, output, count, inputs)}")
