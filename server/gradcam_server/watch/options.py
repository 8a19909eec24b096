"""The options of ``gradcam watch``."""

from dataclasses import dataclass
from pathlib import Path

from gradcam_client.requests import ColormapName

_FILE_CALLS = 4  # one on the device, the others on their way to it and back


@dataclass(frozen=True)
class WatchOptions:
    """The options of ``gradcam watch``, but for those of the requests and of the server.

    Attributes:
        output: Video file, or folder of them.
        as_json: Whether to print JSON lines.
        json_maps: Whether each of them holds the raw map.
        parquet: Folder of Parquet shards.
        show: Port of the view in a browser.
        metrics_port: Port of the metrics.
        fps: Most frames in a second that are read of a source; None is all.
        target: The class to explain; None is the best one.
        hold: The frames for which another class must be the best until it is shown.
        reuse: The change in grey levels below which the last answer is used again; None never.
        audit_share: The share of such frames that are computed all the same.
        max_lag_s: The deadline of a live frame in seconds.
        max_in_flight: Most calls of a source at a time; None chooses.
        colormap: The colours of the heat.
        alpha: The weight of the colours over the frame.
        quiet: Whether to leave out the counts.
    """

    output: Path | None
    as_json: bool
    json_maps: bool
    parquet: Path | None
    show: int | None
    metrics_port: int | None
    fps: float | None
    target: int | str | None
    hold: int
    reuse: float | None
    audit_share: float
    max_lag_s: float
    max_in_flight: int | None
    colormap: ColormapName
    alpha: float
    quiet: bool

    def calls_of(self, is_live: bool) -> int:
        """Returns the most calls of a source at a time.

        A file whose frames depend on the answers before them gets one call at a time, so that
        the result does not depend on the time that answers take.
        """
        if self.max_in_flight is not None:
            return self.max_in_flight
        depends = self.reuse is not None or self.hold > 1
        return 1 if is_live or depends else _FILE_CALLS
