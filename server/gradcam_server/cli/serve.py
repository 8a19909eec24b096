"""``gradcam serve``."""

import logging
from typing import Any

import click

from gradcam_server.cli.common import errors_for_people
from gradcam_server.config import from_options, serve_options


@click.command(context_settings={"show_default": True})
@serve_options
def serve(**options: Any) -> None:
    """Serve predictions and explanations over gRPC.

    Compiles every batch size of every model, then reports SERVING by grpc.health.v1.
    SIGTERM or Ctrl-C finishes the requests in work and stops; a second one stops at once.

    Each option can be set by a variable as well: --batch-sizes by GRADCAM_BATCH_SIZES.
    """
    config = from_options(options)
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    with errors_for_people():
        from gradcam_server.server import run

        raise SystemExit(run(config))
