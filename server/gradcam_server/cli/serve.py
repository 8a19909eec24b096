"""``gradcam serve``."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from gradcam_server.cli.errors import errors_for_people
from gradcam_server.config.click_options import from_options, serve_options
from gradcam_server.config.file import read_config_file
from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ENV_PREFIX, ServeConfig
from gradcam_server.config.shares import share
from gradcam_server.errors import StartupError

logger = logging.getLogger(__name__)

_ARGUMENTS = "gradcam_server.serve.arguments"


class _Serve(click.Command):
    """Stores the command's arguments, which a reload parses again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


def _use_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        with errors_for_people():
            ctx.default_map = read_config_file(path)


@click.command(cls=_Serve, context_settings={"show_default": True})
@click.option(
    "--config",
    type=Path,
    is_eager=True,
    expose_value=False,
    callback=_use_file,
    envvar=f"{ENV_PREFIX}CONFIG",
    help="TOML file with settings, named like the flags but with underscores, and [[models]].",
)
@serve_options
@click.option(
    "--check",
    is_flag=True,
    help="Load and compile the models as for serving, print the compiled graphs, and exit.",
)
@click.pass_context
def serve(ctx: click.Context, /, check: bool, **options: Any) -> None:
    """Serve predictions and explanations over gRPC.

    Compiles every batch size of every model, then reports SERVING by grpc.health.v1.
    SIGTERM or Ctrl-C finishes the requests in progress and stops; a second one stops at once.
    SIGHUP reads the configuration and the models again, and replaces the old models when
    the new models are warm.

    Each option has an environment variable (GRADCAM_BATCH_SIZES for --batch-sizes) and a name in
    the file of --config (batch_sizes). Flags override variables, and variables the file.
    """
    with errors_for_people():
        config = _config(options)
        from gradcam_server.telemetry.logs import configure

        configure(config.log_level, config.log_format)
        logger.debug("Read the settings")
        if check:
            _check(config)
            return
        from gradcam_server.serving.run import run

        raise SystemExit(run(config, lambda: read_arguments(ctx.meta[_ARGUMENTS])))


def _config(options: Mapping[str, Any]) -> ServeConfig:
    config = from_options(options)
    model_specs(config)  # raises errors before anything starts
    share(config)
    return config


def read_arguments(arguments: Sequence[str]) -> ServeConfig:
    """Returns the settings of ``gradcam serve`` with these arguments.

    Raises:
        StartupError: They are wrong.
    """
    try:
        params = serve.make_context("serve", list(arguments)).params
    except click.ClickException as error:
        raise StartupError(error.format_message()) from error
    return _config({name: value for name, value in params.items() if name != "check"})


def _check(config: ServeConfig) -> None:
    from gradcam_server.engine.engine import Engine
    from gradcam_server.transport.security.access import read_token_file
    from gradcam_server.transport.security.listening import check_listening
    from gradcam_server.transport.security.tls import server_credentials

    check_listening(config)
    server_credentials(config)
    read_token_file(config)
    engine = Engine(config)
    engine.warm_up()
    for model in engine.catalog.models:
        click.echo(f"{model.id}: {model.weights}, {len(model.labels)} classes, ready to be served")
        for key, whole in engine.warm.items():
            if key.model == model.id:
                graph = whole.divided()
                times = ", ".join(f"{size}: {s * 1e3:.1f}" for size, s in graph.cost_s.items())
                streams = f" in {graph.stream_count} streams" if graph.has_streams else ""
                by = f"{graph.compiler}{streams}"
                click.echo(f"  {key}, by {by}; milliseconds by batch size: {times}")
