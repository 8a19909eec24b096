"""Builds the parts of one run of ``gradcam watch`` from its options."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from gradcam_server.watch.counters import Counters, MetricsPort
from gradcam_server.watch.explaining import ExplainClient, FrameExplainer
from gradcam_server.watch.frames import Frame
from gradcam_server.watch.options import WatchOptions
from gradcam_server.watch.outputs.draw import Style
from gradcam_server.watch.pacing import Pacer
from gradcam_server.watch.sources.events import Event, Report, SourceEvent
from gradcam_server.watch.sources.naming import SourceKind, SourceSpec
from gradcam_server.watch.sources.opening import open_source
from gradcam_server.watch.sources.slot import FrameSlot
from gradcam_server.watch.temporal.reuse import ReusePolicy
from gradcam_server.watch.temporal.smoothing import MapSmoother
from gradcam_server.watch.temporal.steady import SteadyStream
from gradcam_server.watch.temporal.target import TargetHold
from gradcam_server.watch.watcher import Output, Watched, Watcher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchRun:
    """The parts of a run.

    Attributes:
        watcher: Explains and writes.
        counters: Counts frames.
        states: What is kept of each source, by name.
        addresses: Where the view and the metrics are, for people.
        at_risk: What may be incomplete if the process ends at once, for people.
        closing: Closes what the watcher does not close.
    """

    watcher: Watcher
    counters: Counters
    states: Mapping[str, SteadyStream]
    addresses: Sequence[str]
    at_risk: Sequence[str]
    closing: ExitStack

    def summary(self) -> str:
        """Returns the counts of all sources, and what the audits of reused answers found."""
        audits = [
            f"{name}: {state.audit.report()}" for name, state in self.states.items() if state.audit
        ]
        return "\n".join([self.counters.summary(), *audits])


def assemble(
    specs: Sequence[SourceSpec],
    options: WatchOptions,
    request: Mapping[str, Any],
    client: ExplainClient,
) -> WatchRun:
    """Builds a run in the running event loop; nothing is read before ``watcher.run``.

    Args:
        specs: The sources.
        options: The options.
        request: The options of each call, but for the classes.
        client: Explains images.

    Raises:
        ExplanationServerError: A source or an output cannot be used as given.
        ModuleNotFoundError: A package that an output needs is not installed.
    """
    names = [spec.name for spec in specs]
    counters, pacer = Counters(names), Pacer()
    explainer = FrameExplainer(client, request, max_lag_s=options.max_lag_s, on_pause=pacer.pause)
    with ExitStack() as opened:
        sources = [_watched(spec, options, counters) for spec in specs]
        outputs, addresses = _outputs(names, options, opened)
        closing = ExitStack()
        if options.metrics_port is not None:
            metrics = MetricsPort(counters, options.metrics_port)
            opened.callback(metrics.close)
            closing.callback(metrics.close)
            addresses.append(f"Metrics on http://127.0.0.1:{metrics.port}/metrics")
        opened.pop_all()  # from here on the run closes them
    watcher = Watcher(
        [watched for watched, _ in sources], explainer.explain, pacer, outputs, counters
    )
    states = {watched.source.name: state for watched, state in sources}
    at_risk = [output.at_risk for output in outputs if output.at_risk]
    return WatchRun(watcher, counters, states, addresses, at_risk, closing)


def _watched(
    spec: SourceSpec, options: WatchOptions, counters: Counters
) -> tuple[Watched, SteadyStream]:
    source = open_source(spec, fps=options.fps, report=_reporting(counters))

    def on_shed(frame: Frame) -> None:
        counters.shed(frame.source)

    state = _state(spec, options)
    slot = FrameSlot(source.is_live, on_shed)
    return Watched(source, slot, state, options.calls_of(source.is_live)), state


def _reporting(counters: Counters) -> Report:
    def report(event: SourceEvent) -> None:
        counters.add(event.source, str(event.event))
        if event.event is Event.SHED:  # before it was handed over as read
            counters.read(event.source)
        elif event.path is not None:
            logger.warning("%s: %s: %s", event.source, event.path.name, event.detail)
        elif event.event is Event.FAILED:  # a broken stream has many
            logger.debug("%s: %s", event.source, event.detail)

    return report


def _state(spec: SourceSpec, options: WatchOptions) -> SteadyStream:
    is_video = spec.kind is not SourceKind.FOLDER  # the files of a folder are not one scene
    reuse = None
    if options.reuse is not None:
        reuse = ReusePolicy(options.reuse, options.audit_share)
    return SteadyStream(
        () if options.target is None else (options.target,),
        hold=TargetHold(options.hold) if options.hold > 1 and is_video else None,
        reuse=reuse,
        smoother=MapSmoother() if is_video else None,
    )


def _outputs(
    names: Sequence[str], options: WatchOptions, opened: ExitStack
) -> tuple[list[Output], list[str]]:
    """Opens the outputs, and returns them with the addresses to show."""
    style = Style(options.colormap, options.alpha)
    outputs: list[Output] = []
    addresses: list[str] = []

    def add(output: Output) -> None:
        outputs.append(output)
        opened.callback(output.close)

    # Each brings packages of its own.
    if options.output is not None:
        from gradcam_server.watch.outputs.video import VideoOutput

        add(VideoOutput(options.output, names, style))
    if options.parquet is not None:
        from gradcam_server.watch.outputs.parquet import ParquetShards

        add(ParquetShards(options.parquet))
    if options.show is not None:
        from gradcam_server.watch.outputs.view import BrowserView

        view = BrowserView(names, options.show, style)
        add(view)
        addresses.append(f"Showing {', '.join(names)} at {view.url}")
    # The last one: its reader may leave, and then the others have the frame.
    if options.as_json:
        from gradcam_server.watch.outputs.json_lines import JsonLines

        add(JsonLines(with_maps=options.json_maps))
    return outputs, addresses
