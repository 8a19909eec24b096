"""Counts frames by source: for lines on stderr, and for Prometheus."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from gradcam_server.batch.errors import OutputError
from gradcam_server.watch.frames import FrameResult, Status

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


@dataclass(slots=True)
class SourceCounts:
    """The counts of one source.

    Attributes:
        read: Frames that were read.
        explained: Frames that were computed, audits included.
        reused: Frames that got an earlier answer.
        audited: Frames that could have got an earlier answer, and were computed as a sample.
        shed: Frames that were replaced by a newer one.
        failed: Frames without an answer, and files that are no images.
        reopened: How often the source came back after an outage.
        lag_s: Seconds from the reading of the last answered frame to its result.
        max_lag_s: The highest of them.
        sum_lag_s: Their sum.
    """

    read: int = 0
    explained: int = 0
    reused: int = 0
    audited: int = 0
    shed: int = 0
    failed: int = 0
    reopened: int = 0
    lag_s: float = 0.0
    max_lag_s: float = 0.0
    sum_lag_s: float = 0.0

    @property
    def answered(self) -> int:
        """Frames with an answer."""
        return self.explained + self.reused

    def __str__(self) -> str:
        audited = f" ({self.audited:,} audited)" if self.audited else ""
        parts = [f"{self.read:,} read", f"{self.explained:,} explained{audited}"]
        rare = {"reused": self.reused, "shed": self.shed, "failed": self.failed}
        parts += [f"{count:,} {name}" for name, count in rare.items() if count]
        if self.reopened:
            parts.append(f"reopened {self.reopened:,} x")
        if self.answered:
            parts.append(f"lag {1e3 * self.lag_s:,.0f} ms (at most {1e3 * self.max_lag_s:,.0f})")
        return ", ".join(parts)


_EVENTS = tuple(field.name for field in fields(SourceCounts) if field.type is int)
# Where a frame that was read has gone.
_OUTCOMES = ("explained", "reused", "shed", "failed")


class Counters:
    """Counts the frames of all sources. All methods may be called from any thread.

    Args:
        sources: The names of the sources.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._counts = {name: SourceCounts() for name in sources}
        self._lock = threading.Lock()

    def read(self, source: str) -> None:
        """A frame was read."""
        self.add(source, "read")

    def shed(self, source: str) -> None:
        """A frame was replaced by a newer one."""
        self.add(source, "shed")

    def add(self, source: str, event: str) -> None:
        """Counts an event.

        Args:
            source: The name of the source.
            event: The name of an integer attribute of ``SourceCounts``.

        Raises:
            ValueError: There is no such count.
        """
        if event not in _EVENTS:
            raise ValueError(f"there is no count {event!r}; there are {', '.join(_EVENTS)}")
        with self._lock:
            counts = self._counts[source]
            setattr(counts, event, getattr(counts, event) + 1)

    def finished(self, result: FrameResult, *, audited: bool = False) -> None:
        """A frame has its result.

        Args:
            result: The result.
            audited: Whether it could have been an earlier one, and was computed as a sample.
        """
        with self._lock:
            counts = self._counts[result.frame.source]
            counts.audited += audited
            if result.status is Status.FAILED:
                counts.failed += 1
                return
            counts.explained += result.status is Status.EXPLAINED
            counts.reused += result.status is Status.REUSED
            counts.lag_s = result.lag_s
            counts.max_lag_s = max(counts.max_lag_s, result.lag_s)
            counts.sum_lag_s += result.lag_s

    def snapshot(self) -> dict[str, SourceCounts]:
        """Returns the counts of all sources, by name."""
        with self._lock:
            return {name: replace(counts) for name, counts in self._counts.items()}

    def line(self) -> str:
        """Returns the counts of all sources as one line."""
        return "; ".join(f"{name}: {counts}" for name, counts in self.snapshot().items())

    def summary(self) -> str:
        """Returns the counts of all sources, one line for each."""
        return "\n".join(f"{name}: {counts}" for name, counts in self.snapshot().items())

    def collect(self) -> "Iterator[Metric]":
        """Yields the metrics: this object is a collector of ``prometheus_client``."""
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            SummaryMetricFamily,
        )

        by_source = ("source",)
        frames = CounterMetricFamily(
            "gradcam_watch_frames", "Frames by what became of them.", labels=("source", "outcome")
        )
        read = CounterMetricFamily(
            "gradcam_watch_read_frames", "Frames that were read.", labels=by_source
        )
        audited = CounterMetricFamily(
            "gradcam_watch_audited_frames",
            "Frames that were computed to measure the error of reuse.",
            labels=by_source,
        )
        reopened = CounterMetricFamily(
            "gradcam_watch_reopened", "How often a source came back.", labels=by_source
        )
        lag = SummaryMetricFamily(
            "gradcam_watch_lag_seconds",
            "Time from the reading of a frame to its result.",
            labels=by_source,
        )
        last = GaugeMetricFamily(
            "gradcam_watch_last_lag_seconds", "Lag of the last frame.", labels=by_source
        )
        highest = GaugeMetricFamily(
            "gradcam_watch_max_lag_seconds", "Highest lag since the start.", labels=by_source
        )
        for name, counts in self.snapshot().items():
            for outcome in _OUTCOMES:
                frames.add_metric((name, outcome), getattr(counts, outcome))
            read.add_metric((name,), counts.read)
            audited.add_metric((name,), counts.audited)
            reopened.add_metric((name,), counts.reopened)
            lag.add_metric((name,), counts.answered, counts.sum_lag_s)
            last.add_metric((name,), counts.lag_s)
            highest.add_metric((name,), counts.max_lag_s)
        yield from (frames, read, audited, reopened, lag, last, highest)


class MetricsPort:
    """Serves counters for Prometheus over HTTP on all interfaces, in a thread.

    Args:
        counters: The counters.
        port: The port; 0 takes a free one.

    Attributes:
        port: The port.

    Raises:
        OutputError: The port cannot be used.
        ModuleNotFoundError: The package ``prometheus_client`` is not installed.
    """

    def __init__(self, counters: Counters, port: int) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(counters)
        try:
            server, thread = start_http_server(port, registry=registry)
        except OSError as error:
            raise OutputError(
                f"--metrics-port {port}: it cannot be used ({error.strerror}); name another port"
            ) from error
        self.port: int = server.server_port
        self._end: tuple[Callable[[], None], ...] = (
            server.shutdown,
            server.server_close,
            thread.join,
        )

    def close(self) -> None:
        """Frees the port."""
        for step in self._end:
            step()
