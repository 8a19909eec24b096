"""The server's settings: one table from which flags, variables and the README are made."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import click

from gradcam_server.errors import StartupError
from gradcam_server.ladder import check_ladder

ENV_PREFIX = "GRADCAM_"


class Compiler(StrEnum):
    """What runs the graph."""

    AUTO = "auto"
    XLA = "xla"
    TENSORFLOW = "tensorflow"


class _BatchSizes(click.ParamType[tuple[int, ...]]):
    """Comma-separated positive integers."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return check_ladder([int(size) for size in str(value).split(",")])
        except ValueError:
            self.fail(f"{value!r} is not a list of positive numbers such as 1,2,4,8", param, ctx)


def _option(default: Any, help: str, type: Any = None, multiple: bool = False) -> Any:
    return field(
        default=default,
        metadata={"help": help, "type": type or default.__class__, "many": multiple},
    )


_POSITIVE = click.IntRange(min=1)


@dataclass(frozen=True)
class ServeConfig:
    """Every setting of ``gradcam serve``. Validated by click, once, before anything starts."""

    host: str = _option("127.0.0.1", "Address to listen on.")
    port: int = _option(50051, "Port to listen on; 0 picks a free one.", click.IntRange(0, 65535))
    model: tuple[str, ...] = _option(
        ("resnet50",),
        "Model to serve: resnet50 or efficientnet-lite0. Repeat for several; "
        "the first is the default of requests.",
        str,
        multiple=True,
    )
    weights: tuple[str, ...] = _option(
        ("imagenet",),
        "imagenet, random or a file (.weights.h5, .h5, .keras; .pth for efficientnet-lite0). "
        "With several models: MODEL=WEIGHTS, repeated.",
        str,
        multiple=True,
    )
    seed: int = _option(0, "Seed of random weights.")
    layer: tuple[str, ...] = _option(
        (),
        "Layer to compile before serving, beside each model's default. Repeat for several. "
        "Other layers are compiled at their first use.",
        str,
        multiple=True,
    )
    batch_sizes: tuple[int, ...] = _option(
        (1, 2, 4, 8), "Batch sizes to compile; batches are padded to these.", _BatchSizes()
    )
    compiler: Compiler = _option(
        Compiler.AUTO,
        "What runs the graph: xla, tensorflow (its own executor; for depthwise convolutions on "
        "a CPU many times faster), or auto: whichever is faster here, measured while warming up.",
        click.Choice([compiler.value for compiler in Compiler]),
    )
    max_targets: int = _option(5, "Most classes to explain in one request.", _POSITIVE)
    max_extra_graphs: int = _option(
        4,
        "Most graphs to keep that were compiled at first use; the least recently used goes. "
        "0 refuses layers that were not named by --layer.",
        click.IntRange(min=0),
    )
    max_queue_length: int = _option(
        256, "Most requests admitted and not yet on the device; more are refused.", _POSITIVE
    )
    max_queue_delay_us: int = _option(
        0,
        "How long a batch that is not full may wait for more requests while the device is "
        "free, in microseconds.",
        click.IntRange(min=0),
    )
    max_stream_in_flight: int = _option(
        64, "Most requests of one stream in work at once; then it is read no further.", _POSITIVE
    )
    max_image_pixels: int = _option(50_000_000, "Most pixels of an image.", _POSITIVE)
    max_message_bytes: int = _option(32 * 1024 * 1024, "Most bytes of a message.", _POSITIVE)
    worker_threads: int = _option(4, "Threads that decode and render.", _POSITIVE)
    drain_timeout_s: float = _option(
        30.0,
        "How long requests in work may take after SIGTERM, in seconds.",
        click.FloatRange(min=0),
    )
    log_level: str = _option(
        "info",
        "Least severity that is logged.",
        click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    )

    def weights_of(self, model: str) -> str:
        """Returns the weights option of one model.

        Raises:
            StartupError: Several options fit it, or one names a model that is not served.
        """
        named: dict[str, str] = {}
        plain = []
        for option in self.weights:
            name, separator, value = option.partition("=")
            if separator and name in self.model:
                named[name] = value
            else:
                plain.append(option)
        if len(plain) > 1:
            raise StartupError(
                f"--weights was given as {', '.join(plain)}: with several, each must be "
                f"MODEL=WEIGHTS for a served model ({', '.join(self.model)})"
            )
        return named.get(model, plain[0] if plain else "imagenet")


def serve_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for every setting to a click command, each with its variable."""
    for setting in reversed(dataclasses.fields(ServeConfig)):
        command = click.option(
            flag(setting.name),
            type=setting.metadata["type"],
            multiple=setting.metadata["many"],
            default=_plain(setting.default),
            show_default=bool(setting.default) or setting.default == 0,
            envvar=variable(setting.name),
            help=setting.metadata["help"],
        )(command)
    return command


def flag(name: str) -> str:
    """Returns the flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Returns the environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def show_default(value: Any) -> str:
    """Writes a default as one would type it."""
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value) or "none"
    return str(value)


def from_options(options: Mapping[str, Any]) -> ServeConfig:
    """Makes the settings from click's parsed options."""
    return ServeConfig(**{**options, "compiler": Compiler(options["compiler"])})
