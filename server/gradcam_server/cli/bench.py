"""``gradcam bench``."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradcam_server.cli.connection import Connection, connection_options
from gradcam_server.cli.errors import errors_for_people
from gradcam_server.cli.progress import open_bar
from gradcam_server.cli.serve import read_arguments

if TYPE_CHECKING:
    from gradcam_server.bench.results import Results

_BENCH_PACKAGES = ("psutil", "matplotlib", "PIL", "rich")


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
_POSITIVE = click.IntRange(min=1)


@click.group()
def bench() -> None:
    """Measure graphs and servers, in turns, with checked answers, medians and quartiles.

    Results are JSON files with the machine, the versions, the date and the command; report
    turns them into tables and plots. It needs pip install 'gradcam-server[bench]'.
    """


@bench.command(context_settings={"show_default": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVE OPTION...]")
@click.option(
    "--server",
    metavar="HOST:PORT",
    help="Measure this server.  [default: start one with the options after --]",
)
@click.option("--model", help="Name of the model.  [default: the server's first]")
@click.option("--pid", type=int, help="Process id of a local --server, to measure its CPU time.")
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Image file to send.  [default: a generated image]",
)
@click.option(
    *("--payload", "payloads"),
    multiple=True,
    type=click.Choice(["jpeg", "raw"]),
    default=("jpeg", "raw"),
    help="Send an image file, or pixels of the model's input size. Repeat for both.",
)
@click.option(
    *("--call", "calls"),
    multiple=True,
    type=click.Choice(["unary", "stream"]),
    default=("unary", "stream"),
    help="Send by unary calls or on a stream. Repeat for both.",
)
@click.option(
    "--users",
    type=INTEGERS,
    default="1,2,4,8,16,32",
    help="Closed loops: numbers of users, who send the next request when the last is answered.",
)
@click.option(
    "--load",
    type=REALS,
    default="0.25,0.5,0.7,0.8,0.9,1.0",
    help="Open loops (requests at random times): rates as shares of the bare graph's throughput, "
    "or with --server of the throughput with the most --users.",
)
@click.option("--rates", type=REALS, help="Open loops: requests per second, instead of --load.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, help="Time of each phase.")
@click.option("--rounds", type=_POSITIVE, default=3, help="Measurements of each phase.")
@click.option("--generators", type=_POSITIVE, default=1, help="Processes that send requests.")
@click.option("--trial", is_flag=True, help="Mark the results as not to be quoted.")
@click.option("-o", "--output", type=Path, default=Path("serving.json"))
@connection_options()
def serving(
    options: tuple[str, ...],
    server: str | None,
    model: str | None,
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
        raise click.UsageError("options after -- start a server; leave them out with --server")
    with _bench_errors():
        from gradcam_server.bench.running import gradcam_serve
        from gradcam_server.bench.serving_run import GradcamServer, run

        with ExitStack() as stack:
            if server:
                subject = GradcamServer(server, connection, pid)
            else:
                config = read_arguments(options)
                running = stack.enter_context(gradcam_serve(options))
                process = running.pid, running.ready_s
                subject = GradcamServer(running.address, connection, *process, config)
            with open_bar() as bar:
                results = run(subject, bar, model=model or "", **arguments)
    save(results, output)


@bench.command(context_settings={"show_default": True})
@click.option("--model", default="resnet50", help="A built-in model.")
@click.option("--weights", type=click.Choice(["imagenet", "random"]), default="random")
@click.option(
    *("--compiler", "compilers"),
    multiple=True,
    help="Compiler of the server's graph. Repeat for several.  [default: all]",
)
@click.option(
    *("--device", "devices"),
    multiple=True,
    type=click.Choice(["cpu", "gpu"]),
    default=("cpu",),
    help="Device to measure. Repeat for both.",
)
@click.option("--batch-sizes", type=INTEGERS, default="1,2,4,8,16,32,64", help="To measure.")
@click.option("--rounds", type=_POSITIVE, default=10, help="Measurements of each candidate.")
@click.option(
    *("--price-per-hour", "prices"),
    multiple=True,
    metavar="DEVICE=PRICE",
    callback=lambda _ctx, _param, given: _prices(given),
    help="Price of an hour of the machine, to compute the cost of a million images.",
)
@click.option(
    "--tutorials/--no-tutorials",
    default=True,
    help="Measure the implementations of tutorials, too.",
)
@click.option("--trial", is_flag=True, help="Mark the results as not to be quoted.")
@click.option("-o", "--output", type=Path, default=Path("graph.json"))
def graph(output: Path, compilers: tuple[str, ...], **arguments: Any) -> None:
    """Compare the compiled graph with other implementations of the same computation.

    Every answer is checked against Keras' own layers under an eager tape; a candidate with a wrong
    answer is reported, not timed.

    \b
    gradcam bench graph --model resnet50 --batch-sizes 1,8
    gradcam bench graph --device cpu --device gpu --price-per-hour cpu=0.10 --price-per-hour gpu=3
    """  # noqa: D301 - click reads the character \b
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _bench_errors():
        from gradcam_server.bench.graph_run import run
        from gradcam_server.domain.options import Compiler

        compilers = compilers or tuple(name for name in Compiler if name is not Compiler.AUTO)
        with open_bar() as bar:
            results = run(bar, compilers=compilers, **arguments)
    save(results, output)


@bench.command(context_settings={"show_default": True})
@click.argument("files", nargs=-1, required=True, metavar="RESULTS.json...", type=Path)
@click.option(
    *("-o", "--output"),
    type=Path,
    default=Path("benchmarks.md"),
    help="The page. Only the text between its markers is replaced.",
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
        pairs = (pair.split("=") for pair in given)
        return {device: float(price) for device, price in pairs}
    except ValueError as error:
        raise click.BadParameter("give DEVICE=PRICE, as in cpu=0.10") from error


def save(results: "Results", output: Path) -> None:
    """Writes results, and prints their notes and path."""
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
    except WorkerError as error:  # the last line of its traceback is the message
        raise click.ClickException(str(error).strip().splitlines()[-1]) from error
