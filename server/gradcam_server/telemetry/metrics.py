"""The metrics of one server, for Prometheus: a method for each event.

Arguments are plain Python: neither protobuf nor TensorFlow. All methods may be called from any
thread.
"""

import itertools
import logging
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from gradcam_server.domain.hold_state import HoldState
from gradcam_server.domain.requests import Stats
from gradcam_server.telemetry.metric_table import DEFINITIONS, QUEUES, STAGES, Definition
from gradcam_server.telemetry.process_sum import ProcessSum

logger = logging.getLogger(__name__)

DropReason: TypeAlias = Literal["cancelled", "deadline"]
RejectReason: TypeAlias = Literal[
    "queue_full", "warming_up", "restarting", "draining", "unauthenticated", "forbidden", "limited"
]


class ModelInfo(NamedTuple):
    """A served model: its id, the source of its weights, its default layer and its compiler."""

    model: str
    weights: str
    layer: str
    compiler: str


class Metrics:
    """The metrics of one process, in a registry of their own.

    Attributes:
        registry: Holds the metrics, and the ``process_*`` metrics of this process.
    """

    def __init__(self) -> None:
        # The series _created double the output, and Prometheus does not need them. The switch is
        # one for the whole process.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for definition in DEFINITIONS:
            self._make(definition)
        self._stages = {stage: self._histogram("gradcam_stage_seconds", stage) for stage in STAGES}
        self._requests: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._models: set[str] = set()
        self._model_infos: set[ModelInfo] = set()
        self._engine, self._compilation_count = 0, 0
        self._processes: MultiProcessCollector | None = None

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Writes all metrics.

        Args:
            accept: The HTTP header Accept, which chooses between Prometheus' and OpenMetrics'
                format.

        Returns:
            The text and its content type.
        """
        encode, content_type = choose_encoder(accept)
        if self._processes is None:
            return encode(self.registry), content_type
        return encode(ProcessSum(self.registry, self._processes)), content_type

    # Requests.

    def request_done(self, rpc: str, model: str, code: str, seconds: float) -> None:
        """Counts a request that was answered or failed.

        Args:
            rpc: Name of the method, such as ExplainImage.
            model: Id of the model; a model that is not served counts as "".
            code: Name of the gRPC code, such as OK.
            seconds: Time since its arrival.
        """
        labels = rpc, self._known(model), code
        if (series := self._requests.get(labels)) is None:
            # Finding a series by its labels takes as long as counting.
            series = self._requests[labels] = (
                self._counter("gradcam_requests_total", *labels),
                self._histogram("gradcam_request_seconds", rpc),
            )
        series[0].inc()
        series[1].observe(seconds)

    def stages(self, times: Stats) -> None:
        """Counts the time of an answered image by stage."""
        for stage, histogram in self._stages.items():
            duration_us: int = getattr(times, f"{stage}_us")
            if duration_us or stage != "compile":  # nearly all images find their graph compiled
                histogram.observe(duration_us / 1e6)

    def dropped(self, reason: DropReason, count: int = 1) -> None:
        """Counts admitted requests that were dropped."""
        self._counter("gradcam_dropped_total", reason).inc(count)

    def rejected(self, reason: RejectReason) -> None:
        """Counts a request that was not admitted."""
        self._counter("gradcam_rejected_total", reason).inc()

    def token_request(self, token: str, code: str) -> None:
        """Counts a request by its token.

        Args:
            token: The token's name, never the token; "" without a token.
            code: Name of the gRPC code.
        """
        self._counter("gradcam_token_requests_total", token, code).inc()

    def faithfulness(self, model: str, method: str, insertion: float, deletion: float) -> None:
        """Counts the areas under the curves of an answer, 0 to 1, if they are finite."""
        for curve, area in (("insertion", insertion), ("deletion", deletion)):
            if math.isfinite(area):
                labels = (self._known(model), method, curve)
                self._histogram("gradcam_faithfulness_auc", *labels).observe(area)

    # Batches.

    def batch_done(self, model: str, size: int, padded_size: int, reason: str) -> None:
        """Counts a batch that ran.

        Args:
            model: Id of the model.
            size: Images.
            padded_size: Images and padding.
            reason: Why it was dispatched: full, delay or idle.
        """
        model = self._known(model)
        self._counter("gradcam_batches_total", model, reason).inc()
        self._counter("gradcam_batched_images_total", model).inc(size)
        self._counter("gradcam_padding_total", model).inc(padded_size - size)
        self._histogram("gradcam_batch_size", model).observe(size)

    def device_ran(self, device: int, seconds: float) -> None:
        """Counts seconds that a batch ran on a device."""
        self._counter("gradcam_device_busy_seconds_total", str(device)).inc(seconds)

    def retried_as_singles(self, count: int = 1) -> None:
        """Counts batches that failed and are run again image by image."""
        self._counter("gradcam_retried_as_singles_total").inc(count)

    # The engine.

    def compiled(self, count: int) -> None:
        """Counts compiled graphs."""
        self._counter("gradcam_compilations_total").inc(count)

    def engine_restarted(self) -> None:
        """Counts a restart of the engine."""
        self._counter("gradcam_engine_restarts_total").inc()

    def set_engine_up(self, up: bool) -> None:
        """Sets whether the engine answers."""
        self._gauge("gradcam_engine_up").set(up)
        if not up:
            self.set_engine_resident(0)

    def set_engine_resident(self, resident_bytes: int) -> None:
        """Sets the memory in use by the engine's process, in bytes."""
        self._gauge("gradcam_engine_resident_bytes").set(resident_bytes)

    def set_device_memory(self, device: str, current_bytes: int, peak_bytes: int) -> None:
        """Sets the memory of a device in use, and its peak, in bytes."""
        self._gauge("gradcam_device_memory_bytes", device, "current").set(current_bytes)
        self._gauge("gradcam_device_memory_bytes", device, "peak").set(peak_bytes)

    def engine_beat(
        self,
        engine: int,
        compilation_count: int,
        resident_bytes: int,
        device_bytes: Mapping[str, tuple[int, int]],
    ) -> None:
        """Sets the state of the engine, from its heartbeat, and counts newly compiled graphs.

        Args:
            engine: The process id; a new process begins to count at 0.
            compilation_count: Graphs that the process has compiled.
            resident_bytes: Memory of the process, in bytes.
            device_bytes: Memory in use and its peak for each device, in bytes.
        """
        if engine != self._engine:
            self._engine, self._compilation_count = engine, 0
        self.compiled(max(compilation_count - self._compilation_count, 0))
        self._compilation_count = max(compilation_count, self._compilation_count)
        self.set_engine_resident(resident_bytes)
        for device, (current, peak) in device_bytes.items():
            self.set_device_memory(device, current, peak)

    # The other front ends.

    def set_front_ends(self, count: int) -> None:
        """Sets the number of front ends that listen, including the first."""
        self._gauge("gradcam_front_ends").set(count)

    def front_end_restarted(self) -> None:
        """Counts a restart of a front end beside the first."""
        self._counter("gradcam_front_end_restarts_total").inc()

    def set_front_end_resident(self, number: int, resident_bytes: int) -> None:
        """Sets the memory in use by a front end beside the first, in bytes."""
        self._gauge("gradcam_front_end_resident_bytes", str(number)).set(resident_bytes)

    def add_processes(self, folder: str) -> None:
        """Adds the counters and histograms of other processes to the exposition.

        Args:
            folder: The folder of their files (``prometheus_client``'s PROMETHEUS_MULTIPROC_DIR).
        """
        self._processes = MultiProcessCollector(None, folder)

    # Gauges that are read when Prometheus scrapes.

    def watch_queues(self, lengths: Callable[[], Mapping[str, int]], limit: int) -> None:
        """Exports the lengths of the queues, and the limit of each. Called when scraped."""
        for queue in QUEUES:
            self._gauge("gradcam_queue_length", queue).set_function(
                _reading(lambda queue=queue: lengths().get(queue, 0))  # type: ignore[misc]
            )
            self._gauge("gradcam_queue_limit", queue).set(limit)

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Exports the number of requests in work. Called on the scraping thread."""
        self._gauge("gradcam_in_flight").set_function(_reading(count))

    def watch_worker_threads(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Exports the threads that decode or render, by state. Called on the scraping thread."""
        for state in ("busy", "abandoned"):
            self._gauge("gradcam_worker_threads", state).set_function(
                _reading(lambda state=state: counts()[state])  # type: ignore[misc]
            )

    def watch_held(self, held: Callable[[str], int]) -> None:
        """Exports the bytes that requests hold, by state. Called on the scraping thread."""
        for state in HoldState:
            self._gauge("gradcam_held_bytes", state).set_function(_reading(partial(held, state)))

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Exports whether requests are admitted. Called on the scraping thread."""
        self._gauge("gradcam_ready").set_function(_reading(ready))

    # The versions and models.

    def set_build(self, version: str, tensorflow: str) -> None:
        """Sets the versions of this server and of its TensorFlow."""
        build_info = self._gauges["gradcam_build_info"]
        build_info.clear()
        build_info.labels(version, tensorflow, platform.python_version()).set(1)

    def set_models(self, models: Iterable[ModelInfo]) -> None:
        """Sets the served models. Only their ids become values of the label model."""
        infos, gauge = set(models), self._gauges["gradcam_model_info"]
        self.know_models(info.model for info in infos)
        for info in infos:
            gauge.labels(*info).set(1)
        for info in self._model_infos - infos:
            gauge.remove(*info)
        self._model_infos = infos

    def know_models(self, models: Iterable[str]) -> None:
        """Adds ids of models that may be values of the label model."""
        # The models of an old engine still finish batches.
        self._models.update(models)

    def _known(self, model: str) -> str:
        return model if model in self._models else ""

    def _make(self, definition: Definition) -> None:
        name, help, labels = definition.name, definition.help, tuple(definition.labels)
        metric: Counter | Gauge | Histogram
        match definition.type:
            case "counter":
                metric = self._counters[name] = Counter(name, help, labels, registry=self.registry)
            case "gauge":
                metric = self._gauges[name] = Gauge(name, help, labels, registry=self.registry)
            case "histogram":
                metric = self._histograms[name] = Histogram(
                    name, help, labels, buckets=definition.buckets, registry=self.registry
                )
        # Rates need a 0 to begin with, so series are made where all values are known.
        if labels and all(definition.labels.values()):
            for values in itertools.product(*definition.labels.values()):
                metric.labels(*values)

    def _counter(self, name: str, *labels: str) -> Counter:
        metric = self._counters[name]
        return metric.labels(*labels) if labels else metric

    def _gauge(self, name: str, *labels: str) -> Gauge:
        metric = self._gauges[name]
        return metric.labels(*labels) if labels else metric

    def _histogram(self, name: str, *labels: str) -> Histogram:
        metric = self._histograms[name]
        return metric.labels(*labels) if labels else metric


def _reading(read: Callable[[], float]) -> Callable[[], float]:
    """Makes a failing reading NaN, so that the other metrics are still exported."""

    def reading() -> float:
        try:
            return float(read())
        except Exception:
            logger.exception("A metric could not be read")
            return math.nan

    return reading
