"""The settings: one table from which flags, variables and docs/settings.md are made."""

from dataclasses import dataclass, field
from typing import Any

import click

from gradcam_server.domain.batch_sizes import check_batch_sizes
from gradcam_server.domain.model_spec import BUILT_IN, DEFAULT_MODEL
from gradcam_server.domain.options import AUTO, Compiler, ComputeStreams, Precision

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
            return check_batch_sizes([int(size) for size in sizes])
        except ValueError:
            self.fail(f"{value!r} is not a list of positive numbers such as 1,2,4,8", param, ctx)


class _Streams(click.ParamType[ComputeStreams]):
    """``AUTO``, or a number that is not negative."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> ComputeStreams:
        if value == AUTO:
            return AUTO
        try:
            return click.IntRange(min=0).convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither auto nor a number such as 0, 1 or 2", param, ctx)


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
    port: int = _option(50051, "Port to listen on; 0 picks a free port.", click.IntRange(0, 65535))
    frontends: int = _option(
        1,
        "Processes that serve gRPC on the port, decode and render for one engine. One is enough "
        "unless the device is faster than it: several pay on a machine with a fast device and many "
        "cores, for callers with several connections.",
        _POSITIVE,
    )
    tls_certificate: str | None = _option(
        None, "PEM file of the server's certificate and its chain. Read again when it changes."
    )
    tls_key: str | None = _option(None, "PEM file of the certificate's private key, not encrypted.")
    tls_client_ca: str | None = _option(
        None,
        "PEM file of the authorities for clients: clients without a certificate from one of them "
        "are refused (mutual TLS).",
    )
    allow_insecure: bool = _option(
        False, "Also listen without TLS on addresses other than loopback."
    )
    token_file: str | None = _option(
        None,
        "TOML file of the tokens that callers must have (gradcam token makes tokens). Read again "
        "when it changes.",
    )
    admin_port: int | None = _option(
        None,
        "Port of gradcam.admin.v1.AdminService, on loopback only; 0 picks a free port. Without it "
        "there is no such service.",
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
        "modes of keras.applications) or lite. Not needed for built-in models; for a model from a "
        "file the default is none, with a warning if no layer of the model scales pixels. With "
        "several models: MODEL=VALUE, repeated.",
        str,
        multiple=True,
    )
    outputs: tuple[str, ...] = _option(
        (),
        "What the outputs of a model from a file are, if the log warns that this is unknown: "
        "logits, the logits of a softmax or of a sigmoid, or probabilities. With several models: "
        "MODEL=VALUE, repeated.",
        str,
        multiple=True,
    )
    labels: tuple[str, ...] = _option(
        (),
        "File with the names of the classes: text with a name on each line, or a JSON list; or "
        "imagenet. Without it the classes of a model from a file have no names. With several "
        "models: MODEL=FILE, repeated.",
        str,
        multiple=True,
    )
    input_size: tuple[str, ...] = _option(
        (),
        "HEIGHTxWIDTH of the input of a model from a file that leaves it open; the default is "
        "224x224. With several models: MODEL=HEIGHTxWIDTH, repeated.",
        str,
        multiple=True,
    )
    custom_objects: tuple[str, ...] = _option(
        (),
        "Python module to import before models are loaded from files; it registers the models' "
        "classes with @keras.saving.register_keras_serializable(). Repeat for several.",
        str,
        multiple=True,
    )
    seed: int = _option(0, "Seed of random weights.")
    warm: tuple[str, ...] = _option(
        (),
        "METHOD[:SCORE][@LAYER+LAYER] to compile before serving, beside gradcam at each model's "
        "default layer; SCORE is logit or probability: gradcam:probability@LAYER. Repeat for "
        "several. Other graphs are compiled at their first use.",
        str,
        multiple=True,
    )
    batch_sizes: tuple[int, ...] = _option(
        (1, 2, 4, 8), "Batch sizes to compile; batches are padded to these sizes.", _BatchSizes()
    )
    compiler: Compiler = _option(
        Compiler.AUTO,
        "What runs the graph: xla (for GPUs), tensorflow (its executor), openvino (for CPUs; "
        "pip install 'gradcam-server[openvino]'), pjrt (XLA by JAX; pip install "
        "'gradcam-server[jax]'), or auto: the fastest here but pjrt, measured while warming up.",
        click.Choice([compiler.value for compiler in Compiler]),
    )
    precision: Precision = _option(
        Precision.FLOAT32,
        "Precision of the network: float32, bfloat16 or float16, where the device has it; "
        "the maps are computed in float32. For int8 see gradcam export.",
        click.Choice([item.value for item in Precision if item is not Precision.INT8]),
    )
    device: tuple[str, ...] = _option(
        (),
        "Device that computes: GPU:0, CPU:0. Repeat for several: each holds the models, and a "
        "batch goes to the device that is free first. The default is all GPUs, or else the CPU.",
        str,
        multiple=True,
    )
    device_memory_mib: int | None = _option(
        None,
        "Maximum memory of each GPU, in MiB. Without a limit memory is taken as needed, and kept.",
        _POSITIVE,
    )
    compute_threads: int | None = _option(
        None,
        "Threads that compute, of TensorFlow, OpenVINO or JAX. The default is the number of cores.",
        _POSITIVE,
    )
    compute_streams: ComputeStreams = _option(
        AUTO,
        "Batches that OpenVINO computes at the same time, each on its part of the threads, once "
        "requests wait; one image alone gets all threads. auto measures while warming up which "
        "number is the fastest; 0 is the number that OpenVINO advises. More than 1 holds the "
        "weights in memory twice; 1 does not.",
        _Streams(),
    )
    cache_dir: str | None = _option(
        None,
        "Folder for the times that --compiler auto and --compute-streams auto have measured, and "
        "for what XLA compiled of exports. The default is gradcam-server in the user's cache "
        "folder.",
    )
    max_targets: int = _option(5, "Maximum number of classes to explain in one request.", _POSITIVE)
    max_layers: int = _option(8, "Maximum number of layers in one request.", _POSITIVE)
    max_formats: int = _option(8, "Maximum number of heat map forms in one request.", _POSITIVE)
    max_extra_graphs: int = _option(
        16,
        "Maximum number of graphs to keep that were compiled at first use; the least recently used "
        "is dropped. 0 refuses graphs that --warm does not name.",
        _NOT_NEGATIVE,
    )
    max_passes: int = _option(
        256, "Maximum number of passes of one request, for the methods of many passes.", _POSITIVE
    )
    many_pass_share: float = _option(
        0.25,
        "Part of the device's time that the methods of many passes get while others wait.",
        click.FloatRange(0, 1, max_open=True),
    )
    max_queue_length: int = _option(
        256,
        "Maximum number of requests of each model that are admitted and not yet on the device, and "
        "as many of methods of many passes whose passes have not begun; more are refused.",
        _POSITIVE,
    )
    max_held_bytes: int | None = _option(
        None,
        "Maximum bytes that requests in work may hold: their messages, images and answers, until "
        "the answers are sent. The default is a quarter of the memory that the server may have, "
        "but enough for one request.",
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
        "until its deadline.",
        _NOT_NEGATIVE,
    )
    max_queue_delay_us: int = _option(
        0,
        "How long a batch that is not full may wait for more requests while the device is "
        "free, in microseconds.",
        _NOT_NEGATIVE,
    )
    max_stream_in_flight: int = _option(
        64,
        "Maximum number of requests of one stream in work at once; then the stream is not read "
        "further.",
        _POSITIVE,
    )
    max_streams: int = _option(
        256, "Maximum number of open streams of all callers; more are refused.", _POSITIVE
    )
    max_connection_streams: int = _option(
        256, "Maximum number of open calls of one connection; more wait at the client.", _POSITIVE
    )
    max_connection_age_s: float = _option(
        0.0,
        "Seconds after which clients must connect anew, with a certificate that is valid then; "
        "open calls may end first. 0 is never.",
        click.FloatRange(min=0),
    )
    max_image_pixels: int = _option(50_000_000, "Maximum number of pixels of an image.", _POSITIVE)
    reduced_decode: bool = _option(
        False,
        "Decode large JPEGs at a half, a quarter or an eighth of their size, at least twice the "
        "model's input, if no heat map of the image's size is requested. Quicker; logits change "
        "in the first decimal.",
    )
    max_message_bytes: int = _option(32 * 1024 * 1024, "Maximum bytes of a message.", _POSITIVE)
    max_answer_bytes: int = _option(
        512 * 1024 * 1024,
        "Maximum bytes of the heat maps of one answer, counted before they are encoded.",
        _POSITIVE,
    )
    worker_threads: int = _option(
        4,
        "Threads of each front end that decode and render; one more takes only small images.",
        _POSITIVE,
    )
    watchdog_s: float = _option(
        30.0,
        "How long one batch may run, or the engine may be silent, before the engine is killed and "
        "started again, in seconds.",
        click.FloatRange(min=0, min_open=True),
    )
    sample_share: float = _option(
        0.0,
        "Part of the answers, 0 to 1, whose insertion and deletion are measured in the background "
        "for the metrics.",
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
        "Port of the API over HTTP, and of /metrics, /healthz and /readyz; 0 picks a free port. "
        "Without it there is no HTTP port.",
        click.IntRange(0, 65535),
    )
    http_cors_origin: tuple[str, ...] = _option(
        (),
        "Origin of web pages that may call the HTTP API, such as https://example.org, or * for "
        "all. Repeat for several. Without it browsers let no page of another origin read answers.",
        str,
        multiple=True,
    )
    http_max_connections: int = _option(
        512,
        "Maximum number of HTTP connections of each front end. At the limit a new connection "
        "replaces the one that has been idle for the longest time, or is closed.",
        _POSITIVE,
    )
    http_max_receive_s: float = _option(
        60.0,
        "How long a request over HTTP may take to arrive, in seconds; its headers have 10 seconds.",
        click.FloatRange(min=0, min_open=True),
    )
    ui: bool = _option(False, "Serve the page for people at / of the HTTP port.")
    tracing: str = _option(
        "off",
        "Where the spans of requests go: off, otlp (see the OTEL_* variables) or console.",
        click.Choice(["off", "otlp", "console"]),
    )
    log_level: str = _option(
        "info",
        "Minimum severity that is logged.",
        click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    )
    log_format: str = _option(
        "text",
        "Form of the log: text for people, json for machines.",
        click.Choice(["text", "json"]),
    )


def flag(name: str) -> str:
    """Returns the flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Returns the environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def show_default(value: Any) -> str:
    """Returns a default as a user would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value) or "none"
    return str(value)
