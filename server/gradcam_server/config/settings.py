"""The server's settings: one table from which flags, variables and docs/settings.md are made."""

import dataclasses
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import click

from gradcam_server.domain.batch_sizes import check_ladder
from gradcam_server.domain.model_spec import BUILT_IN, DEFAULT_MODEL, ModelSpec
from gradcam_server.domain.options import Compiler, Outputs, Precision
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError

ENV_PREFIX = "GRADCAM_"


class _BatchSizes(click.ParamType[tuple[int, ...]]):
    """Comma-separated positive integers."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        sizes = value if isinstance(value, list) else str(value).split(",")
        try:
            return check_ladder([int(size) for size in sizes])
        except ValueError:
            self.fail(f"{value!r} is not a list of positive numbers such as 1,2,4,8", param, ctx)


def _option(default: Any, help: str, type: Any = None, multiple: bool = False) -> Any:
    return field(
        default=default,
        metadata={"help": help, "type": type or _type(default), "many": multiple},
    )


def _type(default: Any) -> Any:
    return str if default is None else default.__class__


_POSITIVE = click.IntRange(min=1)
_NOT_NEGATIVE = click.IntRange(min=0)


@dataclass(frozen=True)
class ServeConfig:
    """Every setting of ``gradcam serve``. Validated by click, once, before anything starts."""

    host: str = _option("127.0.0.1", "Address to listen on.")
    port: int = _option(50051, "Port to listen on; 0 picks a free one.", click.IntRange(0, 65535))
    frontends: int = _option(
        1,
        "Processes that speak gRPC on the port, decode and render for one engine. One is enough "
        "until the device is faster than it: several pay on a machine with a fast device and many "
        "cores, for callers with several connections.",
        _POSITIVE,
    )
    tls_certificate: str | None = _option(
        None, "PEM file of the server's certificate and its chain. Read again when it changes."
    )
    tls_key: str | None = _option(None, "PEM file of its private key, not encrypted.")
    tls_client_ca: str | None = _option(
        None,
        "PEM file of the authorities that vouch for clients: clients without a certificate of "
        "theirs are refused (mutual TLS).",
    )
    allow_insecure: bool = _option(
        False, "Listen in plain text on addresses other than loopback, too."
    )
    token_file: str | None = _option(
        None,
        "TOML file of the tokens that callers must have; gradcam token makes them. Read again "
        "when it changes.",
    )
    admin_port: int | None = _option(
        None,
        "Port of gradcam.admin.v1.AdminService, on loopback only; 0 picks a free one. There is "
        "none if it is not set.",
        click.IntRange(0, 65535),
    )
    model: tuple[str, ...] = _option(
        (DEFAULT_MODEL,),
        f"Model to serve: {', '.join(BUILT_IN[:-1])} or {BUILT_IN[-1]}; or NAME=PATH of a .keras "
        "or .h5 file or of a SavedModel's folder, or NAME:VERSION=PATH. Repeat for several; the "
        "first is the default of requests, and the first of a name its default version.",
        str,
        multiple=True,
    )
    weights: tuple[str, ...] = _option(
        ("imagenet",),
        "imagenet, random or a file (.weights.h5, .h5, .keras; .pth for efficientnet-lite0), "
        "for built-in models. With several models: MODEL=WEIGHTS, repeated.",
        str,
        multiple=True,
    )
    preprocessing: tuple[str, ...] = _option(
        (),
        "How pixels are scaled for the network: none (RGB from 0 to 255), caffe, torch, tf (the "
        "modes of keras.applications) or lite. Built-in models know theirs; for a model from a "
        "file it is none, with a warning if no layer of the model scales pixels. With several "
        "models: MODEL=VALUE, repeated.",
        str,
        multiple=True,
    )
    outputs: tuple[str, ...] = _option(
        (),
        "What the outputs of a model from a file are, if its log warns that they do not tell: "
        "logits, the logits of a softmax or of a sigmoid, or probabilities. With several models: "
        "MODEL=VALUE, repeated.",
        str,
        multiple=True,
    )
    labels: tuple[str, ...] = _option(
        (),
        "File with the names of the classes: text, one on each line, or a JSON list; or imagenet. "
        "Without it, a model from a file has no names. With several models: MODEL=FILE, repeated.",
        str,
        multiple=True,
    )
    input_size: tuple[str, ...] = _option(
        (),
        "HEIGHTxWIDTH of the images, for a model from a file that leaves it open (224x224 else). "
        "With several models: MODEL=HEIGHTxWIDTH, repeated.",
        str,
        multiple=True,
    )
    custom_objects: tuple[str, ...] = _option(
        (),
        "Python module to import before models are loaded from files; it registers their own "
        "classes with @keras.saving.register_keras_serializable(). Repeat for several.",
        str,
        multiple=True,
    )
    seed: int = _option(0, "Seed of random weights.")
    warm: tuple[str, ...] = _option(
        (),
        "METHOD[:SCORE][@LAYER+LAYER] to compile before serving, beside gradcam at each model's "
        "default layer; SCORE is logit or probability: gradcam:probability@LAYER. Repeat for "
        "several. Others are compiled at their first use.",
        str,
        multiple=True,
    )
    batch_sizes: tuple[int, ...] = _option(
        (1, 2, 4, 8), "Batch sizes to compile; batches are padded to these.", _BatchSizes()
    )
    compiler: Compiler = _option(
        Compiler.AUTO,
        "What runs the graph: xla (for GPUs), tensorflow (its own executor), openvino (for CPUs; "
        "pip install 'gradcam-server[openvino]'), or auto: the fastest here, measured while "
        "warming up.",
        click.Choice([compiler.value for compiler in Compiler]),
    )
    precision: Precision = _option(
        Precision.FLOAT32,
        "What the network is computed in: float32, bfloat16 or float16, where the device has it; "
        "the maps are computed in float32. For int8 see gradcam export.",
        click.Choice([one.value for one in Precision if one is not Precision.INT8]),
    )
    device: tuple[str, ...] = _option(
        (),
        "Device that computes: GPU:0, CPU:0. Repeat for several: each holds the models, and a "
        "batch goes to the one that is free first. All GPUs, or else the CPU, if it is not set.",
        str,
        multiple=True,
    )
    device_memory_mib: int | None = _option(
        None,
        "Most memory to take on each GPU. Without a limit it is taken as needed, and kept.",
        _POSITIVE,
    )
    compute_threads: int | None = _option(
        None,
        "Threads that compute, of TensorFlow or OpenVINO. As many as there are cores, if it is "
        "not set.",
        _POSITIVE,
    )
    compute_streams: int = _option(
        1,
        "Batches that OpenVINO computes at the same time, each on its part of the threads, once "
        "requests wait; 0 is as many as it advises. More than 1 is faster with many cores or "
        "small models, and takes more memory.",
        _NOT_NEGATIVE,
    )
    cache_dir: str | None = _option(
        None,
        "Folder that keeps what --compiler auto has measured. gradcam-server in the user's cache "
        "folder if it is not set.",
    )
    max_targets: int = _option(5, "Most classes to explain in one request.", _POSITIVE)
    max_layers: int = _option(8, "Most layers of one request.", _POSITIVE)
    max_formats: int = _option(8, "Most forms of the heat maps of one request.", _POSITIVE)
    max_extra_graphs: int = _option(
        16,
        "Most graphs to keep that were compiled at first use; the least recently used goes. "
        "0 refuses what was not named by --warm.",
        _NOT_NEGATIVE,
    )
    max_passes: int = _option(
        256, "Most passes of one request, for the methods of many passes.", _POSITIVE
    )
    many_pass_share: float = _option(
        0.25,
        "Part of the device's time that the methods of many passes get while others wait.",
        click.FloatRange(0, 1, max_open=True),
    )
    max_queue_length: int = _option(
        256,
        "Most requests of each model that are admitted and not yet on the device, and as many of "
        "methods of many passes whose passes have not begun; more are refused.",
        _POSITIVE,
    )
    max_held_bytes: int | None = _option(
        None,
        "Most bytes that requests in work may hold: their messages, images and answers, until "
        "these are sent. A quarter of the memory that the server may have, and enough for one "
        "request, if it is not set.",
        _POSITIVE,
    )
    max_send_s: float = _option(
        120.0,
        "How long an answer may take to be sent before its call is cut off, in seconds.",
        click.FloatRange(min=0, min_open=True),
    )
    max_queue_wait_ms: int = _option(
        0,
        "How long a request may wait for its batch before it is refused, in milliseconds; 0 is "
        "as long as its deadline lets it.",
        _NOT_NEGATIVE,
    )
    max_queue_delay_us: int = _option(
        0,
        "How long a batch that is not full may wait for more requests while the device is "
        "free, in microseconds.",
        _NOT_NEGATIVE,
    )
    max_stream_in_flight: int = _option(
        64, "Most requests of one stream in work at once; then it is read no further.", _POSITIVE
    )
    max_streams: int = _option(
        256, "Most streams open at once, of all callers; more are refused.", _POSITIVE
    )
    max_connection_streams: int = _option(
        256, "Most calls of one connection at once; more wait at the client.", _POSITIVE
    )
    max_connection_age_s: float = _option(
        0.0,
        "After how many seconds clients must connect anew, with a certificate that is valid "
        "then; their calls may end first. 0 is never.",
        click.FloatRange(min=0),
    )
    max_image_pixels: int = _option(50_000_000, "Most pixels of an image.", _POSITIVE)
    reduced_decode: bool = _option(
        False,
        "Decode large JPEGs at a half, a quarter or an eighth of their size, at least twice the "
        "model's input, if no heat map of the image's size is asked for. Quicker; logits change "
        "in the first decimal.",
    )
    max_message_bytes: int = _option(32 * 1024 * 1024, "Most bytes of a message.", _POSITIVE)
    max_answer_bytes: int = _option(
        512 * 1024 * 1024,
        "Most bytes that the heat maps of one answer may take, counted before they are encoded.",
        _POSITIVE,
    )
    worker_threads: int = _option(
        4,
        "Threads that decode and render, of each front end; one more takes only small images.",
        _POSITIVE,
    )
    watchdog_s: float = _option(
        30.0,
        "How long one batch may run, or the engine be silent, before the engine is killed and "
        "started again, in seconds.",
        click.FloatRange(min=0, min_open=True),
    )
    sample_share: float = _option(
        0.0,
        "Part of the answers whose insertion and deletion are measured in the background, for "
        "the metrics.",
        click.FloatRange(0, 1),
    )
    drain_timeout_s: float = _option(
        30.0,
        "How long requests in work may take after SIGTERM, in seconds.",
        click.FloatRange(min=0),
    )
    http_host: str = _option("127.0.0.1", "Address of the HTTP port.")
    http_port: int | None = _option(
        None,
        "Port of /metrics, /healthz and /readyz over HTTP; 0 picks a free one. There is none "
        "if it is not set.",
        click.IntRange(0, 65535),
    )
    tracing: str = _option(
        "off",
        "Where the spans of requests go: off, otlp (as OTEL_* variables say) or console.",
        click.Choice(["off", "otlp", "console"]),
    )
    log_level: str = _option(
        "info",
        "Least severity that is logged.",
        click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    )
    log_format: str = _option(
        "text",
        "Form of the log: text for people, json for machines.",
        click.Choice(["text", "json"]),
    )

    def model_specs(self) -> tuple[ModelSpec, ...]:
        """Returns the models to load, each with its own options.

        Raises:
            StartupError: An option is wrong, or it is not clear which model it is for.
        """
        sources: dict[str, str] = {}
        for option in self.model:
            key, separator, path = option.partition("=")
            name, colon, version = key.partition(":")
            if not name or (separator and not path) or (colon and not (version and path)):
                raise StartupError(
                    f"--model {option}: it must be a name, NAME=PATH or NAME:VERSION=PATH"
                )
            if key in sources:
                raise StartupError(f"--model {option}: there are two models of the name {key!r}")
            sources[key] = path or name
        for key in sources:
            if any(other.startswith(f"{key}:") for other in sources):
                raise StartupError(
                    f"--model {key}: there are several models of this name, so it needs a version"
                )
        # A file has its weights, so a value for all models is for the built-in ones; these know
        # their outputs.
        built_in = [key for key, source in sources.items() if source in BUILT_IN]
        files = [key for key in sources if key not in built_in]
        weights = _by_model("weights", self.weights, sources, built_in or sources)
        preprocessing = _by_model("preprocessing", self.preprocessing, sources, sources)
        outputs = _by_model("outputs", self.outputs, sources, files or sources)
        labels = _by_model("labels", self.labels, sources, sources)
        input_sizes = _by_model("input_size", self.input_size, sources, sources)
        return tuple(
            ModelSpec(
                key.partition(":")[0],
                source,
                weights.get(key, "imagenet"),
                self.seed,
                _preprocessing(preprocessing.get(key)),
                Path(labels[key]) if key in labels else None,
                _size(input_sizes.get(key)),
                self.custom_objects,
                key.partition(":")[2],
                _outputs(outputs.get(key)),
            )
            for key, source in sources.items()
        )


def _by_model(
    setting: str, options: Iterable[str], models: Container[str], default_for: Iterable[str]
) -> dict[str, str]:
    """Reads an option that is VALUE, for all models but those that have MODEL=VALUE.

    A value may hold "=" as long as what precedes it is no model.

    Raises:
        StartupError: There are several values for one model.
    """
    plain: list[str] = []
    named: dict[str, str] = {}
    for option in options:
        name, separator, value = option.partition("=")
        if not separator or name not in models:
            plain.append(option)
        elif name in named:
            raise StartupError(f"{flag(setting)} was given twice for {name}")
        else:
            named[name] = value
    if len(plain) > 1:
        raise StartupError(
            f"{flag(setting)} was given as {', '.join(plain)}: with several, each must be "
            "MODEL=VALUE for a served model"
        )
    return {**{name: value for value in plain for name in default_for}, **named}


def _preprocessing(value: str | None) -> Preprocessing | None:
    if value is None:
        return None
    if value not in set(Preprocessing):
        raise StartupError(f"--preprocessing {value}: it must be one of {', '.join(Preprocessing)}")
    return Preprocessing(value)


def _outputs(value: str | None) -> Outputs | None:
    if value is None:
        return None
    if value not in set(Outputs):
        raise StartupError(f"--outputs {value}: it must be one of {', '.join(Outputs)}")
    return Outputs(value)


def _size(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if not (match := re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", value)):
        raise StartupError(f"--input-size {value}: it must be HEIGHTxWIDTH, such as 224x224")
    return int(match[1]), int(match[2])


def serve_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for every setting to a click command, each with its variable."""
    return setting_options(*(setting.name for setting in dataclasses.fields(ServeConfig)))(command)


def setting_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that adds the options of these settings to a click command."""
    settings = [one for one in dataclasses.fields(ServeConfig) if one.name in names]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for setting in reversed(settings):
            command = click.option(flag(setting.name), **_option_of(setting))(command)
        return command

    return add


def _option_of(setting: dataclasses.Field[Any]) -> dict[str, Any]:
    return {
        "type": setting.metadata["type"],
        "is_flag": setting.metadata["type"] is bool,
        "multiple": setting.metadata["many"],
        "default": _plain(setting.default),
        "show_default": bool(setting.default) or setting.default == 0,
        "envvar": variable(setting.name),
        "help": setting.metadata["help"],
    }


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
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value) or "none"
    return str(value)


def from_options(options: Mapping[str, Any]) -> ServeConfig:
    """Makes the settings from click's parsed options."""
    enums = {"compiler": Compiler, "precision": Precision}
    given = {name: kind(options[name]) for name, kind in enums.items() if name in options}
    return ServeConfig(**{**options, **given})


def from_values(values: Mapping[str, Any]) -> ServeConfig:
    """Makes the settings from values by their names, as a file has them, and from nothing else.

    Raises:
        StartupError: One is wrong.
    """
    options: list[click.Parameter] = [
        click.Option([flag(setting.name)], **{**_option_of(setting), "envvar": None})
        for setting in dataclasses.fields(ServeConfig)
    ]
    command = click.Command("settings", params=options)
    try:
        params = command.make_context("settings", [], default_map=dict(values)).params
    except click.ClickException as error:
        raise StartupError(error.format_message()) from error
    return from_options(params)
