"""What commands that explain images share: who answers, here or a server, and progress."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar, cast

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gradcam_client import GradCamError, ImageExplanation
from gradcam_client import Progress as ImageProgress
from gradcam_client.requests import MANY_PASS_METHODS, METHODS
from gradcam_server.cli.connection import (
    Connection,
    check_server_options,
    connection_options,
    readable,
)

ONE_PASS_METHODS = tuple(name for name in METHODS if name not in MANY_PASS_METHODS)

_LOCAL_BATCH_SIZES = (1, 4)
# The options that say how a model is loaded in this process.
_OF_THE_MODEL = ("weights", "seed", "preprocessing", "labels", "input_size", "custom_objects")

# More than any model has.
ALL_CLASSES = 2**31 - 1

# From so many images on, a trial of the compilers may pay. For efficientnet-lite0 and resnet50 it
# took 4 and 15 s on two cores, and saved less than 5 ms an image; elsewhere it may save 15.
_MANY_IMAGES = 1000

_SLOW_COMPILE_S = 2.0

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ModelAccess:
    """Where images are explained: on a server, or by a model in this process.

    Attributes:
        server: HOST:PORT, or None for this process.
        model: The model's name; empty is resnet50, or the server's first.
        weights: Weights of the model in this process.
        seed: Seed of its random weights.
        preprocessing: How pixels are scaled for a model from a file.
        outputs: What the file's outputs are.
        labels: Its file of class names.
        input_size: HEIGHTxWIDTH, where the file leaves it open.
        custom_objects: Modules that register the file's own classes.
        connection: How the server is reached.
    """

    server: str | None
    model: str
    weights: str
    seed: int
    preprocessing: str | None = None
    outputs: str | None = None
    labels: str | None = None
    input_size: str | None = None
    custom_objects: tuple[str, ...] = ()
    connection: Connection = field(default_factory=Connection)

    @classmethod
    def take(cls, options: dict[str, Any]) -> Self:
        """Takes the options of ``model_access_options`` out of a command's."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls)})

    @property
    def requested_model(self) -> str:
        """The model to name in requests; this process has only one."""
        return self.model if self.server else ""

    @contextmanager
    def open(self, image_count: int, target_count: int) -> Iterator[Any]:
        """Opens what answers ``explain_stream``.

        Args:
            image_count: Number of images that will be asked about; many are batched.
            target_count: Most classes to be explained in one image.

        Raises:
            click.ClickException: The server cannot be asked like that.
        """
        if self.server:
            with self.connection.client(self.server) as client:
                yield client
            return
        from gradcam_server.cli.local import LocalClient
        from gradcam_server.config.settings import ServeConfig
        from gradcam_server.domain.model_spec import DEFAULT_MODEL
        from gradcam_server.engine.engine import FirstUse

        config = ServeConfig(
            model=(self.model or DEFAULT_MODEL,),
            weights=(self.weights,),
            seed=self.seed,
            preprocessing=_given(self.preprocessing),
            outputs=_given(self.outputs),
            labels=_given(self.labels),
            input_size=_given(self.input_size),
            custom_objects=self.custom_objects,
            max_targets=target_count,
            batch_sizes=_LOCAL_BATCH_SIZES if image_count > 1 else (1,),
        )
        first_use = FirstUse.SOONEST if image_count < _MANY_IMAGES else FirstUse.FASTEST
        with LocalClient(config, first_use, _say_compiling) as local:
            yield local


def _say_compiling(key: Any) -> None:
    click.echo(f"compiling {key} (first use) ...", err=True)


def say_compiled(access: ModelAccess, result: ImageExplanation) -> None:
    """Says on stderr that an answer came late because the server compiled its graph."""
    seconds = result.stats.compile_us / 1e6
    if access.server and seconds >= _SLOW_COMPILE_S:
        click.echo(f"the server took {seconds:.1f} s to compile this (first use)", err=True)


def _given(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)


def model_access_options(command: _F) -> _F:
    """Adds the options of a ``ModelAccess``: --server and its connection, --model and its loading.

    With --server the options of loading are refused, and without it those of the connection.
    """

    @functools.wraps(command)
    def placed(*args: Any, **options: Any) -> Any:
        check_server_options(options["server"], options["model"], _OF_THE_MODEL)
        return command(*args, **options)

    decorated: Any = placed
    for option in (
        click.option(
            "--custom-objects",
            multiple=True,
            metavar="MODULE",
            help="Python module that registers the own classes of a model from a file.",
        ),
        click.option("--input-size", metavar="HxW", help="Where a file leaves it open."),
        click.option("--labels", metavar="FILE", help="Names of the classes of a model."),
        click.option(
            "--outputs",
            metavar="logits|softmax|sigmoid|probabilities",
            help="What the outputs of a model from a file are, where they do not tell.",
        ),
        click.option(
            "--preprocessing",
            metavar="none|caffe|torch|tf|lite",
            help="How pixels are scaled for a model from a file.  [default: none]",
        ),
        click.option("--seed", default=0, show_default=True, help="Seed of random weights."),
        click.option(
            "--weights",
            default="imagenet",
            show_default=True,
            metavar="imagenet|random|FILE",
            help="Weights of a built-in model, without --server.",
        ),
        click.option(
            "--model",
            default="",
            show_default=False,
            help="Name of the model, or NAME=PATH of a file in-process; resnet50, or the "
            "server's first, when not given.",
        ),
        connection_options(),
        click.option(
            "--server", metavar="HOST:PORT", help="Ask this server; else work in-process."
        ),
    ):
        decorated = option(decorated)
    return cast("_F", decorated)


def class_of(text: str) -> int | str:
    """Reads a class as it is typed: an index, or a name or WordNet id."""
    return int(text) if text.isdecimal() else text


def error_as_json(error: Exception | None) -> dict[str, str]:
    """Returns what a script sees of an error: a gRPC code or the error's type, and the text."""
    code = error.code.name if isinstance(error, GradCamError) else type(error).__name__
    return {"code": code, "message": readable(str(error))}


def probabilities_of(answer: ImageExplanation) -> NDArray[np.float64]:
    """Returns the probabilities of all classes, shape (classes,).

    They are the server's: logits do not say whether they are of a softmax.

    Args:
        answer: To a request with a ``prediction_count`` of ``ALL_CLASSES``.
    """
    probabilities = np.empty(len(answer.predictions))
    for one in answer.predictions:
        probabilities[one.index] = one.probability
    return probabilities


class Bar:
    """A progress bar."""

    def __init__(self, progress: Progress, description: str, count: int | None) -> None:
        self._progress, self._task = progress, progress.add_task(description, total=count)

    def advance(self) -> None:
        """One more is done."""
        self._progress.advance(self._task)

    def show(self, passes: ImageProgress) -> None:
        """Shows how many passes of the only image are done."""
        self._progress.update(
            self._task, completed=passes.completed_passes, total=passes.total_passes
        )


@contextmanager
def progress_bar(
    count: int | None, *, hidden: bool, description: str = "Explaining"
) -> Iterator[Bar]:
    """Shows a progress bar on stderr, if there is more than one thing to do.

    Args:
        count: How many things; None is not yet known.
        hidden: Show none after all.
        description: What is done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=hidden or count == 1) as progress:
        yield Bar(progress, description, count)
