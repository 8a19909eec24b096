"""``gradcam batch``."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gradcam_client.requests import METHODS, RESIZE_MODES
from gradcam_server.batch.explain_options import HEATMAP_TYPES, ExplainOptions
from gradcam_server.batch.plan import Share
from gradcam_server.cli.common import class_of, needs
from gradcam_server.cli.connection import (
    BELONGS_TO_SERVER,
    Connection,
    connection_options,
    refuse_given,
)
from gradcam_server.cli.errors import errors_for_people
from gradcam_server.cli.progress import job_progress
from gradcam_server.config.click_options import from_options, setting_options
from gradcam_server.config.settings import ServeConfig
from gradcam_server.images.file_names import describe_left_out

if TYPE_CHECKING:
    from gradcam_server.batch.job import Job, Summary
    from gradcam_server.batch.stage import OpenStage

_ENGINES = ("local", "ray")
_POSITIVE = click.IntRange(min=1)
_INTERRUPTED = 130  # the exit status of shells: 128 and the number of SIGINT
# Settings of the engine and of its model.
_SETTINGS = (
    *("model", "weights", "preprocessing", "outputs", "labels", "input_size", "custom_objects"),
    "seed",
    *("batch_sizes", "compiler", "precision", "device", "device_memory_mib", "compute_threads"),
    *("compute_streams", "cache_dir", "max_passes", "max_image_pixels", "reduced_decode"),
    *("worker_threads", "log_level", "log_format"),
)
# Settings that belong to the server with --server.
_SERVER_SETTINGS = tuple(
    name for name in _SETTINGS if name not in ("model", "log_level", "log_format")
)
_LOCAL_ONLY = ("engine", "ray_address", "ray_actors")


class _ShareType(click.ParamType[Share]):
    """I/N."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Share:
        if isinstance(value, Share):
            return value
        number, _, count = str(value).partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            self.fail(f"{value!r} is not a share such as 0/4, 1/4, 2/4 or 3/4", param, ctx)
        return Share(int(number), int(count))


@click.command(context_settings={"show_default": True})
@click.argument("inputs", metavar="INPUT")
@click.argument("output", type=Path, metavar="OUTPUT")
@click.option(
    *("--class", "target"),
    metavar="CLASS",
    help="Explain this class: an index, a name or a WordNet id.  [default: each image's best]",
)
@click.option("--top-k", type=_POSITIVE, default=5, help="Keep the K best classes.")
@click.option(
    "--method", type=click.Choice(list(METHODS)), default="gradcam", help="Explain by this method."
)
@click.option("--layer", help="Explain this layer (see gradcam layers).")
@click.option(
    "--resize",
    type=click.Choice(list(RESIZE_MODES)),
    default="stretch",
    help="How images are resized to the model's input size.",
)
@click.option(
    "--heatmap",
    type=click.Choice(HEATMAP_TYPES),
    default="float16",
    help="Type of the stored heat maps; multiplied by heatmap_scale they are the map.",
)
@click.option("--overlays", is_flag=True, help="Write a JPEG of each image with its map over it.")
@click.option("--limit", type=_POSITIVE, help="Take only the first N images.")
@click.option(
    "--shard",
    "share",
    type=_ShareType(),
    default="0/1",
    help="Write only this share of the shards: several processes can share one OUTPUT.",
)
@click.option("--shard-size", type=_POSITIVE, default=1000, help="Rows of each Parquet shard.")
@click.option("--errors-max", type=click.IntRange(min=0), help="Stop if more images fail.")
@click.option(
    "--column", help="Column of images in a Parquet INPUT.  [default: the first with a usual name]"
)
@click.option(
    "--engine",
    type=click.Choice(_ENGINES),
    default="local",
    help="Explain in this process, or with Ray Data on one or many machines.",
)
@click.option("--ray-address", metavar="ADDRESS", help="Ray cluster.  [default: a new one here]")
@click.option(
    "--ray-actors",
    type=_POSITIVE,
    help="Engines in the cluster.  [default: one for each GPU, or for each 8 CPUs]",
)
@click.option(
    "--server",
    metavar="HOST:PORT[,HOST:PORT...]",
    help="Explain on these servers, at low priority; no model is loaded here.",
)
@click.option(
    "--priority",
    type=_POSITIVE,
    default=100,
    help="Priority of the requests to --server; 1 is the highest.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
@setting_options(*_SETTINGS)
@connection_options()
@click.pass_context
def batch(
    ctx: click.Context,
    /,
    inputs: str,
    output: Path,
    target: str | None,
    top_k: int,
    method: str,
    layer: str | None,
    resize: str,
    heatmap: str,
    overlays: bool,
    limit: int | None,
    share: Share,
    shard_size: int,
    errors_max: int | None,
    column: str | None,
    engine: str,
    ray_address: str | None,
    ray_actors: int | None,
    server: str | None,
    priority: int,
    quiet: bool,
    connection: Connection,
    **settings: Any,
) -> None:
    """Explain many images, and write a folder of Parquet files.

    \b
    gradcam batch photos/ out/ --model efficientnet-lite0
    gradcam batch 'shards/*.tar' out/ --overlays
    gradcam batch list.txt out/ --server host1:50051,host2:50051
    gradcam batch images.parquet out/ --engine ray

    INPUT is a folder (with all below it), a pattern, a .txt file with a path on each line, Parquet
    files with a column of images or paths, or WebDataset's tar files. An image that cannot be read
    gets a row with the error.

    The same command finishes a job that was stopped, whatever stopped it: finished shards are kept,
    and OUTPUT has each image once.
    """  # noqa: D301 - click reads the character \b
    with errors_for_people(), _stoppable():
        needs_pyarrow()
        from gradcam_server.batch.job import Job
        from gradcam_server.batch.job import run as run_job
        from gradcam_server.batch.model import identity
        from gradcam_server.batch.sources.opening import open_source

        options = ExplainOptions(
            target=None if target is None else class_of(target),
            top_k=top_k,
            method=method,
            layer=layer or "",
            resize=resize,
            heatmap=heatmap,
            overlays=overlays,
        )
        if ray_address and engine != "ray":
            raise click.UsageError("--ray-address needs --engine ray")
        config = _config(ctx, settings)
        if server:
            _refuse_with_server(ctx)
            model = settings["model"][0] if _is_given(ctx, "model") else ""
            engine_name, model_identity = "server", {"server_model": model}
            open_stage = _servers(server, model, connection, options, priority)
        else:
            engine_name, model_identity = engine, identity(config)
            open_stage = _engine(engine, config, options, ray_address, ray_actors)
        job = Job(
            source=open_source(inputs, column=column, outside=output),
            where=inputs,
            output=output,
            options=options,
            model=model_identity,
            limit=limit,
            share=share,
            shard_size=shard_size,
            errors_max=errors_max,
            engine=engine_name,
            column=column,
        )
        with job_progress(hidden=quiet) as report:
            summary = run_job(job, open_stage, report)
    _print(job, summary)


def needs_pyarrow() -> None:
    """Raises an error that says what to install, if pyarrow is missing.

    Raises:
        click.ClickException: pyarrow is not installed.
    """
    needs("pyarrow", "batch")


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not ParameterSource.DEFAULT


def _config(ctx: click.Context, settings: Mapping[str, Any]) -> ServeConfig:
    from gradcam_server.batch.model import BATCH_SIZES

    if len(settings["model"]) > 1:
        raise click.UsageError(
            "--model: a job has one model; run a job for each model, in its own folder"
        )
    sizes = settings["batch_sizes"] if _is_given(ctx, "batch_sizes") else BATCH_SIZES
    return from_options({**settings, "batch_sizes": sizes, "max_targets": 1})


def _refuse_with_server(ctx: click.Context) -> None:
    refuse_given(ctx, _SERVER_SETTINGS, BELONGS_TO_SERVER)
    refuse_given(ctx, _LOCAL_ONLY, "cannot be combined with --server: the servers explain")


def _engine(
    engine: str,
    config: ServeConfig,
    options: ExplainOptions,
    address: str | None,
    actors: int | None,
) -> "OpenStage":
    from gradcam_server.telemetry.logs import configure
    from gradcam_server.telemetry.memory import share_heap

    configure(config.log_level, config.log_format)
    share_heap()
    if engine == "ray":
        needs("ray", "ray")
        from gradcam_server.batch.ray_data import RayStage

        return lambda: RayStage(config, options, address, actors)
    from gradcam_server.batch.local import LocalStage

    return lambda: LocalStage(config, options)


def _servers(
    server: str, model: str, connection: Connection, options: ExplainOptions, priority: int
) -> "OpenStage":
    from gradcam_server.batch.remote import RemoteStage

    return lambda: RemoteStage(server, connection.client, options, model=model, priority=priority)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turns Ctrl-C into a message that the job can be resumed, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            "\nStopped. Finished shards stay; the same command goes on where it stopped.",
            err=True,
        )
        raise SystemExit(_INTERRUPTED) from None


def _print(job: "Job", summary: "Summary") -> None:
    share = "" if job.share.count == 1 else f" of share {job.share}"
    if not summary.done:
        click.echo(f"{job.output}: all {summary.images:,} images{share} are explained already")
    else:
        rate = summary.done / summary.seconds
        click.echo(
            f"{job.output}: {summary.images:,} images{share} in {summary.parts:,} shards; this run "
            f"explained {summary.done:,} in {summary.seconds:.1f} s ({rate:.1f} images/s, start "
            "included)"
        )
    if job.source.left_out:
        click.echo(f"  {describe_left_out(job.source.left_out)}", err=True)
    if summary.errors:
        click.echo(
            f"  {summary.errors:,} of them failed: their rows have status 'error' and say why"
        )
