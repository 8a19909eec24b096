"""How commands reach a model: on a server, or loaded in this process."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar, cast

import click

from gradcam_client import ImageExplanation
from gradcam_server.cli.connection import Connection, check_server_options, connection_options
from gradcam_server.cli.progress import say

_LOCAL_BATCH_SIZES = (1, 4)
# The options that say how a model is loaded in this process.
_OF_THE_MODEL = ("weights", "seed", "preprocessing", "labels", "input_size", "custom_objects")

# From so many images on, timing all compilers may save time. For efficientnet-lite0 and resnet50
# it took 4 and 15 s on two cores, and saved less than 5 ms per image; elsewhere it may save 15.
_MANY_IMAGES = 1000

_SLOW_COMPILE_S = 2.0

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ModelAccess:
    """The model of a command: on a server, or loaded in this process.

    Attributes:
        server: HOST:PORT, or None for this process.
        model: The model's name; empty is resnet50, or the server's first.
        weights: Weights of the model in this process.
        seed: Seed of its random weights.
        preprocessing: How pixels are scaled for a model from a file.
        outputs: The kind of the file's outputs, such as ``logits``.
        labels: The file of its class names.
        input_size: HEIGHTxWIDTH, if the file leaves it open.
        custom_objects: Modules that register the file's own classes.
        connection: How to connect to the server.
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
        """Takes the options of ``model_access_options`` out of a command's options."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls)})

    @property
    def requested_model(self) -> str:
        """The model's name for requests; empty in this process, which has one model."""
        return self.model if self.server else ""

    @contextmanager
    def open(self, image_count: int, target_count: int) -> Iterator[Any]:
        """Opens a client with ``explain_stream``: a ``Client`` or a ``LocalClient``.

        Args:
            image_count: Number of images to explain; several are batched.
            target_count: Maximum number of classes to explain in one image.

        Raises:
            click.ClickException: The options of the connection are wrong.
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
    say(f"compiling {key} (first use) ...")


def say_compiled(access: ModelAccess, result: ImageExplanation) -> None:
    """Says on stderr that the server compiled a graph for this answer, if that took long."""
    seconds = result.stats.compile_us / 1e6
    if access.server and seconds >= _SLOW_COMPILE_S:
        say(f"the server took {seconds:.1f} s to compile this graph (first use)")


def _given(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)


def model_access_options(command: _F) -> _F:
    """Adds the options of a ``ModelAccess``: --server and its connection, --model and its loading.

    With --server the options that load a model are refused; without it, those of the connection.
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
            help="Python module that registers custom classes of a model from a file.",
        ),
        click.option(
            "--input-size", metavar="HxW", help="Input size, if the model's file has none."
        ),
        click.option("--labels", metavar="FILE", help="File with the names of the classes."),
        click.option(
            "--outputs",
            metavar="logits|softmax|sigmoid|probabilities",
            help="What the outputs of a model from a file are, if that cannot be detected.",
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
            help="Name of the model; without --server also NAME=PATH of a file.  [default: "
            "resnet50, or the server's first model]",
        ),
        connection_options(),
        click.option(
            "--server",
            metavar="HOST:PORT",
            help="Explain on this server; without it, in this process.",
        ),
    ):
        decorated = option(decorated)
    return cast("_F", decorated)
