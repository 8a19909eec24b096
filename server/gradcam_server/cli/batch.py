"""``gradcam batch``."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from gradcam_client.requests import METHODS, RESIZE_MODES
from gradcam_server.batch.explain_options import HEATMAP_TYPES, ExplainOptions
from gradcam_server.batch.plan import Share
from gradcam_server.cli.common import errors_for_people
from gradcam_server.cli.connection import (
    OF_THE_SERVER,
    Connection,
    connection_options,
    refuse_given,
)
from gradcam_server.cli.progress_lines import ProgressLines
from gradcam_server.cli.session import class_of
from gradcam_server.config.settings import ServeConfig, from_options, setting_options
from gradcam_server.images.file_names import describe_left_out

if TYPE_CHECKING:
    from gradcam_server.batch.job import Job, Summary
    from gradcam_server.batch.schema import Row
    from gradcam_server.batch.stage import OpenStage

_ENGINES = ("local", "ray")
_SHOW_INTERVAL_S = 0.2
_MIN_RATED_S = 1.0
_INTERRUPTED = 130  # the exit status of shells: 128 and the number of SIGINT
# Options of the engine and of its models, which are the server's, too.
_SETTINGS = (
    *("model", "weights", "preprocessing", "outputs", "labels", "input_size", "custom_objects"),
    "seed",
    *("batch_sizes", "compiler", "precision", "device", "device_memory_mib", "compute_threads"),
    *("compute_streams", "cache_dir", "max_passes", "max_image_pixels", "reduced_decode"),
    *("worker_threads", "log_level", "log_format"),
)
# Those that say what a server, too, would have to be started with.
_ITS_OWN = tuple(name for name in _SETTINGS if name not in ("model", "log_level", "log_format"))
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
    *("--class", "target"), metavar="CLASS", help="Explain this class, not each image's best one."
)
@click.option("--top-k", type=click.IntRange(min=1), default=5, help="Keep the K best classes.")
@click.option(
    "--method", type=click.Choice(list(METHODS)), default="gradcam", help="Explain by this method."
)
@click.option("--layer", default="", help="Explain this layer (see gradcam layers).")
@click.option(
    "--resize",
    type=click.Choice(list(RESIZE_MODES)),
    default="stretch",
    help="How images are brought to the model's input size.",
)
@click.option(
    "--heatmap",
    type=click.Choice(HEATMAP_TYPES),
    default="float16",
    help="How heat maps are kept; times heatmap_scale they are the map's values.",
)
@click.option("--overlays", is_flag=True, help="Write a JPEG of each image with its map over it.")
@click.option("--limit", type=click.IntRange(min=1), help="Take only the first N images.")
@click.option(
    "--shard",
    "share",
    type=_ShareType(),
    default="0/1",
    help="Do only this share of the shards: several processes can share one OUTPUT.",
)
@click.option(
    "--shard-size", type=click.IntRange(min=1), default=1000, help="Rows of each Parquet shard."
)
@click.option(
    "--errors-max", type=click.IntRange(min=0), help="End if more images fail.  [default: no limit]"
)
@click.option("--column", help="Column of a Parquet INPUT; found by its name if not given.")
@click.option(
    "--engine",
    type=click.Choice(_ENGINES),
    default="local",
    help="Who explains: this process, or Ray Data on one machine or many.",
)
@click.option(
    "--ray-address", metavar="ADDRESS", help="The Ray cluster; one on this machine if not given."
)
@click.option(
    "--ray-actors",
    type=click.IntRange(min=1),
    help="Engines in the cluster.  [default: one for each GPU, or for each 8 CPUs]",
)
@click.option(
    "--server",
    metavar="HOST:PORT[,HOST:PORT...]",
    help="Ask these servers, at low priority; no model is loaded here.",
)
@click.option(
    "--priority",
    type=click.IntRange(min=1),
    default=100,
    help="Priority of the requests to --server; 1 goes first.",
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
    layer: str,
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
    is a row that says why.

    A job that was stopped, whatever stopped it, is finished by the same command: what is there is
    not done again, and OUTPUT has each image once.
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
            layer=layer,
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
            who, of_model = "server", {"server_model": model}
            open_stage = _servers(server, model, connection, options, priority)
        else:
            who, of_model = engine, identity(config)
            open_stage = _engine(engine, config, options, ray_address, ray_actors)
        job = Job(
            source=open_source(inputs, column=column, outside=output),
            where=inputs,
            output=output,
            options=options,
            model=of_model,
            limit=limit,
            share=share,
            shard_size=shard_size,
            errors_max=errors_max,
            engine=who,
            column=column,
        )
        with _progress(hidden=quiet) as report:
            summary = run_job(job, open_stage, report)
    _print(job, summary)


def needs_pyarrow() -> None:
    """Says what to install, if it is not there.

    Raises:
        click.ClickException: pyarrow is not installed.
    """
    _needs("pyarrow", "batch")


def _needs(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise click.ClickException(f"this needs {package}: pip install 'gradcam-server[{extra}]'")


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not ParameterSource.DEFAULT


def _config(ctx: click.Context, settings: Mapping[str, Any]) -> ServeConfig:
    from gradcam_server.batch.model import BATCH_SIZES

    if len(settings["model"]) > 1:
        raise click.UsageError("--model: a job has one model; run one for each, in folders of own")
    sizes = settings["batch_sizes"] if _is_given(ctx, "batch_sizes") else BATCH_SIZES
    return from_options({**settings, "batch_sizes": sizes, "max_targets": 1})


def _refuse_with_server(ctx: click.Context) -> None:
    refuse_given(ctx, _ITS_OWN, OF_THE_SERVER)
    refuse_given(ctx, _LOCAL_ONLY, "says who explains; with --server the servers do")


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
        _needs("ray", "ray")
        from gradcam_server.batch.ray_data import RayStage

        return lambda: RayStage(config, options, address, actors)
    from gradcam_server.batch.local import LocalStage

    return lambda: LocalStage(config, options)


def _servers(
    server: str, model: str, connection: Connection, options: ExplainOptions, priority: int
) -> "OpenStage":
    from gradcam_server.batch.remote import RemoteStage

    return lambda: RemoteStage(server, connection.client, options, model=model, priority=priority)


class _Bar:
    """Shows how far a job is, a few times in a second: showing costs more than counting."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = self._errors = 0
        self._began_at = self._shown_at = 0.0
        self._task: TaskID | None = None

    def begin(self, total: int, finished: int, errors: int) -> None:
        """The job begins."""
        self._errors, self._finished, self._total = errors, finished, total
        self._task = self._progress.add_task(
            "Explaining", total=total, completed=finished, errors=errors, rate="-"
        )

    def advance(self, row: "Row") -> None:
        """One more image is done."""
        self._done += 1
        self._errors += row.status != "ok"
        now = time.monotonic()
        if self._done == 1:
            self._began_at = now
        is_last = self._finished + self._done == self._total
        if self._task is None or (now < self._shown_at + _SHOW_INTERVAL_S and not is_last):
            return
        self._shown_at = now
        # From the first image on: loading the model is no part of the rate.
        took_s = now - self._began_at
        self._progress.update(
            self._task,
            completed=self._finished + self._done,
            errors=self._errors,
            rate=f"{(self._done - 1) / took_s:.1f}" if took_s > _MIN_RATED_S else "-",
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Says what becomes of a job that is stopped from the keyboard."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            "\nStopped. What is finished stays; the same command goes on where it stopped.",
            err=True,
        )
        raise SystemExit(_INTERRUPTED) from None


@contextmanager
def _progress(*, hidden: bool) -> Iterator[_Bar | ProgressLines]:
    if not (hidden or sys.stderr.isatty()):
        with ProgressLines() as lines:
            yield lines
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} images/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[errors]} errors"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=hidden) as progress:
        yield _Bar(progress)


def _print(job: "Job", summary: "Summary") -> None:
    share = "" if job.share.count == 1 else f" of share {job.share}"
    if not summary.done:
        click.echo(f"{job.output}: all {summary.images:,} images{share} are there already")
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
