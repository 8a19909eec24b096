"""Builds the parts of one run of ``gradcam watch`` from its options."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradcam_server.watch.counters import Counters
from gradcam_server.watch.explaining import ExplainClient, FrameExplainer
from gradcam_server.watch.options import WatchOptions
from gradcam_server.watch.pacing import Pacer
from gradcam_server.watch.sources.events import Event, SourceEvent
from gradcam_server.watch.sources.naming import SourceSpec
from gradcam_server.watch.sources.opening import open_source
from gradcam_server.watch.sources.slot import FrameSlot
from gradcam_server.watch.watcher import Output, Watched, Watcher


def assemble(
    specs: Sequence[SourceSpec],
    options: WatchOptions,
    request: Mapping[str, Any],
    client: ExplainClient,
) -> tuple[Watcher, Counters]:
    """Returns the watcher of a run, and its counters.

    Args:
        specs: The sources.
        options: The options.
        request: The options of each call, but for the classes.
        client: Explains images.

    Raises:
        ExplanationServerError: A source or an output cannot be used as given.
    """
    raise NotImplementedError
