"""``gradcam bench``."""

import os
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
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The image file that is sent; else one is made.",
)
@click.option(
    *("--payload", "payloads"),
    multiple=True,
    type=click.Choice(["jpeg", "raw"]),
    default=("jpeg", "raw"),
    help="What is sent: an image file, or pixels of the model's input size. Repeat for both.",
)
@click.option(
    *("--call", "calls"),
    multiple=True,
    type=click.Choice(["unary", "stream"]),
    default=("unary", "stream"),
    help="How it is sent. Repeat for both.",
)
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
        from gradcam_server.bench.serving_run import GradcamServer, run

        with ExitStack() as stack:
            if server:
                subject = GradcamServer(server, connection, pid)
            else:
                config = read_arguments(options)
                running = stack.enter_context(gradcam_serve(options))
                subject = GradcamServer(
                    running.address, connection, running.pid, running.ready_s, config
                )
            with progress() as bar:
                results = run(subject, bar, **arguments)
    save(results, output)


@bench.command(context_settings={"show_default": True})
@click.option("--model", default="resnet50", help="A built-in model.")
@click.option("--weights", type=click.Choice(["imagenet", "random"]), default="random")
@click.option(
    *("--compiler", "compilers"),
    multiple=True,
    help="Of ours. Repeat for several.  [default: all]",
)
@click.option(
    *("--device", "devices"),
    multiple=True,
    type=click.Choice(["cpu", "gpu"]),
    default=("cpu",),
    help="Repeat for both.",
)
@click.option("--batch-sizes", type=INTEGERS, default="1,2,4,8,16,32,64")
@click.option("--rounds", type=click.IntRange(min=1), default=10)
@click.option(
    *("--price-per-hour", "prices"),
    multiple=True,
    metavar="DEVICE=PRICE",
    callback=lambda _ctx, _param, given: _prices(given),
    help="What an hour of a machine costs, for the cost of a million images.",
)
@click.option("--tutorials/--no-tutorials", default=True, help="Time the tutorials' ways, too.")
@click.option("--trial", is_flag=True, help="Say in the results that they are not to be quoted.")
@click.option("-o", "--output", type=Path, default=Path("graph.json"))
def graph(output: Path, compilers: tuple[str, ...], **arguments: Any) -> None:
    """Measure the compiled graph against other ways to the same answer.

    Every answer is checked against Keras' own layers under an eager tape; one that is wrong is
    reported and not timed.

    \b
    gradcam bench graph --model resnet50 --batch-sizes 1,8
    gradcam bench graph --device cpu --device gpu --price-per-hour cpu=0.10 --price-per-hour gpu=3
    """  # noqa: D301 - click reads the character \b
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _bench_errors():
        from gradcam_server.bench.graph_run import run
        from gradcam_server.domain.options import Compiler

        ours = compilers or tuple(one for one in Compiler if one is not Compiler.AUTO)
        with progress() as bar:
            results = run(bar, compilers=ours, **arguments)
    save(results, output)


@bench.command(context_settings={"show_default": True})
@click.argument("files", nargs=-1, required=True, metavar="RESULTS.json...", type=Path)
@click.option(
    *("-o", "--output"),
    type=Path,
    default=Path("benchmarks.md"),
    help="The page. Only what is between its markers is replaced.",
)
def report(files: tuple[Path, ...], output: Path) -> None:
    """Turn results into tables and plots.

    \b
    gradcam bench report graph.json serving.json -o benchmarks.md
    """  # noqa: D301 - click reads the character \b
    with _bench_errors():
        from gradcam_server.bench.report import write
        from gradcam_server.bench.results import ResultsError

        try:
            written = write(output, files)
        except ResultsError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {error.strerror}") from error
    click.echo("\n".join(map(str, written)))


def _prices(given: tuple[str, ...]) -> dict[str, float]:
    try:
        pairs = (one.split("=") for one in given)
        return {device: float(price) for device, price in pairs}
    except ValueError as error:
        raise click.BadParameter("give DEVICE=PRICE, as in cpu=0.10") from error


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
    except WorkerError as error:  # the end of its traceback says what it was
        raise click.ClickException(str(error).strip().splitlines()[-1]) from error
