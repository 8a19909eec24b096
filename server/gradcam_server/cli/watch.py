"""``gradcam watch``."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from gradcam_client import Raw, RetryPolicy
from gradcam_client.transport import split_target
from gradcam_server.cli.common import class_of, needs
from gradcam_server.cli.errors import errors_for_people
from gradcam_server.cli.model_access import ModelAccess, model_access_options
from gradcam_server.cli.progress import say
from gradcam_server.cli.request_options import request_options
from gradcam_server.watch.options import WatchOptions
from gradcam_server.watch.outputs.unread import discard, on_reader_gone, write_unless_stuck

if TYPE_CHECKING:
    from gradcam_server.watch.assembly import WatchRun
    from gradcam_server.watch.counters import Counters
    from gradcam_server.watch.explaining import ExplainClient
    from gradcam_server.watch.sources.naming import SourceSpec
    from gradcam_server.watch.watcher import Watcher

_POSITIVE = click.FloatRange(min=0, min_open=True)
_LINE_INTERVAL_S = 10.0
# The first call shows wrong options at once, and compiles the graph.
_FIRST_CALL_S = 300.0
_FIRST_IMAGE = np.full((64, 64, 3), 128, np.uint8)
_MANY_IMAGES = sys.maxsize  # for compilers: a camera never ends
_SIGNALLED = 128  # the exit status of shells is this and the number of the signal
_UNREAD = 1  # the exit status of other commands whose reader of stdout is gone
_STDERR = 2


@click.command(context_settings={"show_default": True})
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    *("-o", "--output"),
    type=Path,
    help="Write a video with the heat and the class drawn in: an .mp4, or with several sources, "
    "or for a folder, one each into it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per frame or file.")
@click.option(
    "--json-maps", is_flag=True, help="Add the raw map to each object of --json, in base64."
)
@click.option(
    "--parquet",
    type=Path,
    metavar="FOLDER",
    help="Write Parquet shards with the columns of gradcam batch.",
)
@click.option(
    "--show",
    type=click.IntRange(0, 65535),
    is_flag=False,
    flag_value=8090,
    metavar="[PORT]",
    help="Show the sources in a browser of this machine; without PORT on 8090.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve the counters for Prometheus on this port.",
)
@click.option(
    "--fps", type=_POSITIVE, help="Read at most this many frames per second.  [default: all]"
)
@click.option(
    *("--class", "target"),
    metavar="CLASS",
    help="Explain this class: an index, a name or a WordNet id.  [default: each frame's best]",
)
@click.option(
    "--hold",
    type=click.IntRange(min=1),
    default=1,
    help="Explain the best class until another one is best for N frames.",
    metavar="N",
)
@click.option(
    "--reuse",
    type=_POSITIVE,
    is_flag=False,
    flag_value=2.0,
    metavar="[LEVELS]",
    help="Use the last answer again for a frame that differs by less than this many grey levels; "
    "2 without LEVELS.",
)
@click.option(
    "--audit-share",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Share of such frames that are computed all the same, to measure the error of --reuse.",
)
@click.option(
    "--max-lag",
    type=_POSITIVE,
    default=1.0,
    help="Deadline of a live frame in seconds: what would come later is not computed.",
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(min=1),
    help="Most calls of a source at a time.  [default: 1 of a live source or with --reuse or "
    "--hold, 4 of a file or folder]",
)
@click.option(
    "--priority",
    type=click.IntRange(min=1),
    default=1,
    help="Priority of the requests to --server; 1 is the highest.",
)
@click.option("--quiet", is_flag=True, help="Show no counts.")
@request_options
@model_access_options
def watch(sources: Sequence[str], **options: Any) -> None:
    """Explain what cameras, videos and folders bring, while it comes.

    \b
    gradcam watch 0 --server localhost:50051 --show
    gradcam watch door=rtsp://camera/1 yard=rtsp://camera/2 --server HOST:PORT --json
    gradcam watch clip.mp4 -o out.mp4 --hold 10
    gradcam watch incoming/ --parquet results/ --server a:50051,b:50051

    A SOURCE is a camera (0, /dev/video0), a stream (rtsp://, http://), a video file, or a folder
    in which files appear, each with a name before it if you like (NAME=SOURCE).

    Of a camera or stream the newest frame counts: what cannot be explained in time is left out.
    Of a file or folder every frame counts. Ctrl-C ends all outputs readable; a second one quits
    at once, and says what may be incomplete.
    """  # noqa: D301 - click reads the character \b
    needs("av", "watch")
    needs("watchdog", "watch")
    access = ModelAccess.take(options)
    target = options.pop("target")
    chosen = WatchOptions(
        target=None if target is None else class_of(target),
        max_lag_s=options.pop("max_lag"),
        **{name: options.pop(name) for name in _NAMES if name in options},
    )
    if not (chosen.output or chosen.as_json or chosen.parquet or chosen.show is not None):
        raise click.UsageError("name where the results go: -o, --json, --parquet or --show")
    if chosen.json_maps and not chosen.as_json:
        raise click.UsageError("--json-maps needs --json: it adds the maps to its objects")
    if chosen.target is not None and chosen.hold > 1:
        raise click.UsageError("--class and --hold exclude each other: a given class stays")
    if chosen.parquet is not None:
        needs("pyarrow", "batch")
    if chosen.show is not None:
        needs("starlette", "server")
    if chosen.metrics_port is not None:
        needs("prometheus_client", "server")
    if len(options["layers"]) > 1 and options["fusion"] == "none":
        raise click.UsageError("a frame has one map: name one --layer, or add --fusion layercam")
    request = {
        "model": access.requested_model,
        "heatmaps": [Raw()],
        **{name: options[name] for name in _OF_REQUESTS},
    }
    with errors_for_people():
        from gradcam_server.telemetry.logs import configure
        from gradcam_server.watch.sources.naming import parse_sources

        configure("info")
        run = _Run(parse_sources(sources), chosen, request)
        status = _with_client(access, run)
    raise SystemExit(status)


_NAMES = tuple(WatchOptions.__dataclass_fields__)
_OF_REQUESTS = (*("layers", "fusion", "method", "score", "passes", "smooth", "resize", "priority"),)


def _with_client(
    access: ModelAccess, main: Callable[["ExplainClient"], Coroutine[Any, Any, int]]
) -> int:
    """Runs ``main`` with a client of the servers, or of the model in this process."""
    if not access.server:
        with access.open(_MANY_IMAGES, 1) as local:
            status: int = local.run(main(local))
            return status
    servers = access.server
    # A frame that one server refuses goes to the others, once each and at once.
    retry = RetryPolicy(len(split_target(servers)), initial_backoff_s=0.005, max_backoff_s=0.02)

    async def connected() -> int:
        async with access.connection.aio_client(servers, retry) as client:
            return await main(client)

    return asyncio.run(connected())


class _Run:
    """One run of the command.

    Args:
        specs: The sources.
        options: The options.
        request: The options of each call, but for the classes.
    """

    def __init__(
        self, specs: "Sequence[SourceSpec]", options: WatchOptions, request: Mapping[str, Any]
    ) -> None:
        self._specs, self._options, self._request = specs, options, request
        self._signal: int | None = None
        self._is_unread = False

    async def __call__(self, client: "ExplainClient") -> int:
        """Watches until all sources have ended, or a signal comes.

        Returns:
            The exit status.

        Raises:
            GradCamError: The server cannot be reached, or refuses the options.
        """
        await self._first_call(client)
        from gradcam_server.watch.assembly import assemble

        run = assemble(self._specs, self._options, self._request, client)
        self._take_signals(run)
        if self._options.as_json:
            on_reader_gone(sys.stdout, partial(self._on_reader_gone, run.watcher))
        for address in run.addresses:
            _tell(address)
        lines = None if self._options.quiet else asyncio.create_task(_say_lines(run.counters))
        try:
            with run.closing:
                await run.watcher.run()
        except BrokenPipeError:
            self._is_unread = True
        finally:
            if lines is not None:
                lines.cancel()
                _tell(run.summary())
        for name, error in run.watcher.errors.items():
            text = str(error)
            _tell(f"Error: {text}" if text.startswith(name) else f"Error: {name}: {text}")
        return self._status(run.watcher)

    async def _first_call(self, client: "ExplainClient") -> None:
        target = self._options.target
        await client.explain(
            _FIRST_IMAGE,
            timeout_s=_FIRST_CALL_S,
            classes=[] if target is None else [target],
            **self._request,
        )

    def _take_signals(self, run: "WatchRun") -> None:
        """Handles signals from now on to the end of the process.

        The handlers are not the event loop's: the second signal quits even if the loop is stuck,
        such as by a terminal that is stopped (Ctrl-S), or has ended already.
        """
        loop = asyncio.get_running_loop()

        def stop() -> None:
            run.watcher.stop()
            _tell("Stopping; once more quits at once.")

        def on_signal(number: int, _: object) -> None:
            if self._signal is not None:
                at_risk = ", ".join(run.at_risk)
                lost = f"; these may be incomplete: {at_risk}" if at_risk else ""
                write_unless_stuck(_STDERR, f"Quit at once{lost}.")
                os._exit(_SIGNALLED + number)
            self._signal = number
            with suppress(RuntimeError):  # the loop is closed: it has ended already
                loop.call_soon_threadsafe(stop)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else nohup has it ignored
            signal.signal(signal.SIGHUP, on_signal)

    def _on_reader_gone(self, watcher: "Watcher") -> None:
        self._is_unread = True
        watcher.stop()

    def _status(self, watcher: "Watcher") -> int:
        from gradcam_server.watch.sources.naming import SourceKind

        ending = {spec.name for spec in self._specs if spec.kind is SourceKind.FILE}
        if self._signal is not None and watcher.unfinished & ending:
            return _SIGNALLED + self._signal
        if self._is_unread and self._signal is None:  # Ctrl-C ends the other end of a pipe, too
            return _UNREAD
        return 1 if watcher.errors else 0


async def _say_lines(counters: "Counters") -> None:
    while True:
        await asyncio.sleep(_LINE_INTERVAL_S)
        _tell(counters.line())


def _tell(text: str) -> None:
    """Writes a line to stderr. The run goes on if its reader or its terminal is gone."""
    try:
        say(text)
    except OSError:
        discard(sys.stderr)
