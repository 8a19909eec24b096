"""``gradcam bench``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gradcam_server.cli.common import errors_for_people
from gradcam_server.cli.connection import Connection, connection_options
from gradcam_server.cli.serve import read_arguments

if TYPE_CHECKING:
    from gradcam_server.bench.results import Results

_BENCH_PACKAGES = ("psutil", "matplotlib", "PIL")
_CALLS = ("unary", "stream")
_TRIAL_LOAD = 0.5


class _Numbers(click.ParamType[tuple[float, ...]]):
    """Comma-separated positive numbers."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind
        self.name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._kind(part) for part in str(value).split(",") if part)
        except ValueError:
            numbers = (0,)
        if any(number <= 0 for number in numbers):
            self.fail(f"{value!r} is not a list of positive numbers such as 1,2,4", param, ctx)
        return numbers


INTEGERS, REALS = _Numbers(int), _Numbers(float)


@click.group()
def bench() -> None:
    """Measure graphs and servers: interleaved, checked, with medians and spreads.

    Results are JSON files, with the machine, the versions, the date and the command; report
    turns them into tables and plots. pip install 'gradcam-server[bench]' brings what it needs.
    """


@bench.command(context_settings={"show_default": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVE OPTION...]")
@click.option(
    "--server",
    metavar="HOST:PORT",
    help="Measure this server. Else one is started with the options after --.",
)
@click.option("--model", default="", help="Model to ask for; empty is the server's first.")
@click.option("--pid", type=int, help="The server's process, for its CPU time, if it is local.")
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--payloads", default="jpeg,raw", help="What is sent: an image file, raw pixels.")
@click.option("--calls", default="unary,stream", help="How it is sent.")
@click.option("--users", type=INTEGERS, default="1,2,4,8,16,32", help="Of the closed loops.")
@click.option(
    "--load",
    type=REALS,
    default="0.25,0.5,0.7,0.8,0.9,1.0",
    help="Of the open loops: their rate over what the bare graph does, or over the throughput of "
    "most users where there is no bare graph.",
)
@click.option("--rates", type=REALS, help="Requests in a second of the open loops, instead.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, help="Of each phase.")
@click.option("--rounds", type=click.IntRange(min=1), default=3)
@click.option("--generators", type=click.IntRange(min=1), default=1, help="Processes that ask.")
@click.option("--trial", is_flag=True, help="Say in the results that they are not to be quoted.")
@click.option("-o", "--output", type=Path, default=Path("serving.json"))
@connection_options()
def serving(
    options: tuple[str, ...],
    server: str | None,
    pid: int | None,
    output: Path,
    connection: Connection,
    **arguments: Any,
) -> None:
    """Measure a server under growing load, beside the bare graph on the same cores.

    \b
    gradcam bench serving -- --model resnet50 --weights random
    gradcam bench serving --server gradcam.example.org:50051 --tls
    """  # noqa: D301 - click reads the character \b
    if server and options:
        raise click.UsageError("options of serve have no use with --server")
    with _bench_errors():
        from gradcam_server.bench.running import gradcam_serve
        from gradcam_server.bench.serving_run import Ours, run

        with ExitStack() as stack:
            if server:
                ours = Ours(server, connection, pid, None)
            else:
                config = read_arguments(options)
                running = stack.enter_context(gradcam_serve(options))
                ours = Ours(running.address, connection, running.pid, running.ready_s, config)
            with progress() as bar:
                results = run(ours, bar, **arguments)
    save(results, output)


@contextmanager
def progress() -> Iterator[Progress]:
    """Shows a bar on stderr, where there is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        yield bar


def save(results: "Results", output: Path) -> None:
    """Writes results and says so, with the notes."""
    try:
        results.save(output)
    except OSError as error:
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from error
    for note in results.notes:
        click.echo(f"Note: {note}", err=True)
    click.echo(output)


@contextmanager
def _bench_errors() -> Iterator[None]:
    from gradcam_server.bench.worker import WorkerError

    try:
        with errors_for_people():
            yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _BENCH_PACKAGES:
            raise
        raise click.ClickException(
            f"this needs {error.name}: pip install 'gradcam-server[bench]'"
        ) from error
    except WorkerError as error:
        raise click.ClickException(str(error)) from error
