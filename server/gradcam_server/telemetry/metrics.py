"""What Prometheus reads: one table of metrics, and a method for each thing that happens.

Arguments are plain Python: neither protobuf nor TensorFlow. All methods may be called from any
thread. Labels hold only what the operator or this code chose, never what a client sent, so the
number of series is bounded.
"""

import itertools
import logging
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from gradcam_server.domain.hold_state import HoldState
from gradcam_server.telemetry.tracing import StageTimes

logger = logging.getLogger(__name__)

DropReason: TypeAlias = Literal["cancelled", "deadline"]
RejectReason: TypeAlias = Literal[
    "queue_full", "warming_up", "restarting", "draining", "unauthenticated", "forbidden", "limited"
]


@dataclass(frozen=True)
class Definition:
    """One metric.

    Attributes:
        name: As it is exported; a histogram's series add _bucket, _sum and _count.
        type: What it is.
        help: What it counts or measures, for people.
        labels: The labels, each with its values, or none if they are not known here.
        buckets: Upper bounds of a histogram, without infinity.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()


_QUEUES = ("one_pass", "many_pass")
_STAGES = ("decode", "queue", "compile", "compute", "render")
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STAGE_S = (0.0001, 0.00025, 0.0005, *_REQUEST_S[:-1])
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_AUC = tuple(step / 20 for step in range(1, 21))

DEFINITIONS = (
    Definition(
        "gradcam_requests_total",
        "counter",
        "Requests answered or failed. A stream is one, and each image of it another, NAME.image or "
        "NAME.request. The model is empty where there is none, or none that is served.",
        {"rpc": (), "model": (), "code": ()},
    ),
    Definition(
        "gradcam_request_seconds",
        "histogram",
        "Time from a request's arrival to its answer or failure; of a stream, to its end.",
        {"rpc": ()},
        _REQUEST_S,
    ),
    Definition(
        "gradcam_stage_seconds",
        "histogram",
        "Time that an answered image spent in each stage; queue is waiting for a batch, compile is "
        "waiting for a graph at its first use (images that find it compiled are not counted).",
        {"stage": _STAGES},
        _STAGE_S,
    ),
    Definition(
        "gradcam_batches_total",
        "counter",
        "Batches that ran, by why they went when they did: full, the oldest image had waited "
        "long enough (delay), or the device was free (idle).",
        {"model": (), "reason": ("full", "delay", "idle")},
    ),
    Definition(
        "gradcam_device_busy_seconds_total",
        "counter",
        "Seconds that batches ran on each device of the engine, counted from 0.",
        {"device": ()},
    ),
    Definition(
        "gradcam_batch_size", "histogram", "Images in a batch.", {"model": ()}, _BATCH_SIZES
    ),
    Definition(
        "gradcam_batched_images_total", "counter", "Images that ran in batches.", {"model": ()}
    ),
    Definition(
        "gradcam_padding_total",
        "counter",
        "Places of batches that were filled with padding.",
        {"model": ()},
    ),
    Definition(
        "gradcam_retried_as_singles_total",
        "counter",
        "Batches that failed and were run again image by image.",
    ),
    Definition(
        "gradcam_queue_length",
        "gauge",
        "Requests admitted and not yet on the device, of all models, by queue; methods of many "
        "passes have their own.",
        {"queue": _QUEUES},
    ),
    Definition(
        "gradcam_queue_limit",
        "gauge",
        "Most requests that the queues of all models may hold, by queue.",
        {"queue": _QUEUES},
    ),
    Definition(
        "gradcam_in_flight", "gauge", "Requests in work, until their answers are really sent."
    ),
    Definition(
        "gradcam_held_bytes",
        "gauge",
        "Memory that requests in work hold or have reserved (--max-held-bytes), by what for: a "
        "received message, decoding, waiting for the device, rendering, an answer not yet sent.",
        {"state": tuple(HoldState)},
    ),
    Definition(
        "gradcam_worker_threads",
        "gauge",
        "Threads that decode or render: busy for callers that wait, or abandoned by callers that "
        "have gone, until the work has ended.",
        {"state": ("busy", "abandoned")},
    ),
    Definition(
        "gradcam_dropped_total",
        "counter",
        "Requests given up after they were let in: their caller cancelled, or the deadline came.",
        {"reason": ("cancelled", "deadline")},
    ),
    Definition(
        "gradcam_rejected_total",
        "counter",
        "Requests that were not let in.",
        {
            "reason": (
                *("queue_full", "warming_up", "restarting", "draining"),
                *("unauthenticated", "forbidden", "limited"),
            )
        },
    ),
    Definition(
        "gradcam_token_requests_total",
        "counter",
        "Requests by the name of their token; empty without one.",
        {"token": (), "code": ()},
    ),
    Definition(
        "gradcam_compilations_total",
        "counter",
        "Graphs compiled, warm-up included. It stands still under steady traffic.",
    ),
    Definition("gradcam_ready", "gauge", "1 while requests are let in, else 0."),
    Definition("gradcam_engine_up", "gauge", "1 while the engine's process answers, else 0."),
    Definition(
        "gradcam_engine_restarts_total", "counter", "Engines that were lost and started again."
    ),
    Definition(
        "gradcam_engine_resident_bytes",
        "gauge",
        "Memory of the engine's process in use; 0 while there is none.",
    ),
    Definition(
        "gradcam_device_memory_bytes",
        "gauge",
        "Memory of a device that TensorFlow has in use, and its peak.",
        {"device": (), "kind": ("current", "peak")},
    ),
    Definition("gradcam_front_ends", "gauge", "Processes that listen on the port (--frontends)."),
    Definition(
        "gradcam_front_end_restarts_total",
        "counter",
        "Front ends beside the first that were lost and started again.",
    ),
    Definition(
        "gradcam_front_end_resident_bytes",
        "gauge",
        "Memory in use of each front end beside the first; 0 while it is being started again.",
        {"front_end": ()},
    ),
    Definition(
        "gradcam_build_info",
        "gauge",
        "Always 1; the labels say what runs.",
        {"version": (), "tensorflow": (), "python": ()},
    ),
    Definition(
        "gradcam_model_info",
        "gauge",
        "1 for each model that is served; the labels describe it. The compiler is what runs "
        "Grad-CAM at the layer: where --compiler is auto, the one that was chosen.",
        {"model": (), "weights": (), "layer": (), "compiler": ()},
    ),
    Definition(
        "gradcam_faithfulness_auc",
        "histogram",
        "Area under the insertion curve (higher is better) and the deletion curve (lower is "
        "better) of the answers that --sample-share chose.",
        {"model": (), "method": (), "curve": ("insertion", "deletion")},
        _AUC,
    ),
)


class ModelInfo(NamedTuple):
    """A served model: its id, where its weights are from, its default layer, what runs that."""

    model: str
    weights: str
    layer: str
    compiler: str


class Metrics:
    """The metrics of one server, in a registry of their own.

    Attributes:
        registry: Holds them, and the ``process_*`` metrics of this process.
    """

    def __init__(self) -> None:
        # Their series double the output, and Prometheus does not need them. It is for the process.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for definition in DEFINITIONS:
            self._make(definition)
        self._stages = {stage: self._histogram("gradcam_stage_seconds", stage) for stage in _STAGES}
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
        return encode(_Sum(self.registry, self._processes)), content_type

    # Requests.

    def request_done(self, rpc: str, model: str, code: str, seconds: float) -> None:
        """A request was answered or failed.

        Args:
            rpc: Name of the method, such as ExplainImage.
            model: Id of the model; one that is not served counts as "".
            code: Name of the gRPC code, such as OK.
            seconds: Time since its arrival.
        """
        self._counter("gradcam_requests_total", rpc, self._known(model), code).inc()
        self._histogram("gradcam_request_seconds", rpc).observe(seconds)

    def stages(self, times: StageTimes) -> None:
        """An image was answered; where its time went."""
        for stage, histogram in self._stages.items():
            duration_us: int = getattr(times, f"{stage}_us")
            if duration_us or stage != "compile":  # nearly all images find their graph compiled
                histogram.observe(duration_us / 1e6)

    def dropped(self, reason: DropReason, count: int = 1) -> None:
        """Requests that had been let in were given up."""
        self._counter("gradcam_dropped_total", reason).inc(count)

    def rejected(self, reason: RejectReason) -> None:
        """A request was not let in."""
        self._counter("gradcam_rejected_total", reason).inc()

    def token_request(self, token: str, code: str) -> None:
        """A request was done.

        Args:
            token: The token's name, never the token; "" without one.
            code: Name of the gRPC code.
        """
        self._counter("gradcam_token_requests_total", token, code).inc()

    def faithfulness(self, model: str, method: str, insertion: float, deletion: float) -> None:
        """An answer was measured; the areas under its curves, 0 to 1. What is not finite is not."""
        for curve, area in (("insertion", insertion), ("deletion", deletion)):
            if math.isfinite(area):
                labels = (self._known(model), method, curve)
                self._histogram("gradcam_faithfulness_auc", *labels).observe(area)

    # Batches.

    def batch_done(self, model: str, size: int, padded_size: int, reason: str) -> None:
        """A batch ran.

        Args:
            model: Id of the model.
            size: Images.
            padded_size: Images and padding.
            reason: Why it went: full, delay or idle.
        """
        model = self._known(model)
        self._counter("gradcam_batches_total", model, reason).inc()
        self._counter("gradcam_batched_images_total", model).inc(size)
        self._counter("gradcam_padding_total", model).inc(padded_size - size)
        self._histogram("gradcam_batch_size", model).observe(size)

    def device_ran(self, device: int, seconds: float) -> None:
        """A batch ran on a device for so long."""
        self._counter("gradcam_device_busy_seconds_total", str(device)).inc(seconds)

    def retried_as_singles(self, count: int = 1) -> None:
        """Batches failed and are run again image by image."""
        self._counter("gradcam_retried_as_singles_total").inc(count)

    # The engine.

    def compiled(self, count: int) -> None:
        """So many more graphs were compiled."""
        self._counter("gradcam_compilations_total").inc(count)

    def engine_restarted(self) -> None:
        """The engine was lost, and is being started again."""
        self._counter("gradcam_engine_restarts_total").inc()

    def set_engine_up(self, up: bool) -> None:
        """Whether the engine answers."""
        self._gauge("gradcam_engine_up").set(up)
        if not up:
            self.set_engine_resident(0)

    def set_engine_resident(self, resident_bytes: int) -> None:
        """The memory that the engine's process has in use, in bytes."""
        self._gauge("gradcam_engine_resident_bytes").set(resident_bytes)

    def set_device_memory(self, device: str, current_bytes: int, peak_bytes: int) -> None:
        """The memory of a device in use, and its peak, in bytes."""
        self._gauge("gradcam_device_memory_bytes", device, "current").set(current_bytes)
        self._gauge("gradcam_device_memory_bytes", device, "peak").set(peak_bytes)

    def engine_beat(
        self,
        engine: int,
        compilation_count: int,
        resident_bytes: int,
        device_bytes: Mapping[str, tuple[int, int]],
    ) -> None:
        """The engine told how it is. What it compiled since it last did is counted.

        Args:
            engine: Its process id; another one begins to count at 0.
            compilation_count: Graphs that it has compiled.
            resident_bytes: Memory of its process.
            device_bytes: For each device, memory in use and its peak.
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
        """How many listen, with this one."""
        self._gauge("gradcam_front_ends").set(count)

    def front_end_restarted(self) -> None:
        """One was lost, and is being started again."""
        self._counter("gradcam_front_end_restarts_total").inc()

    def set_front_end_resident(self, number: int, resident_bytes: int) -> None:
        """The memory that another one has in use, in bytes."""
        self._gauge("gradcam_front_end_resident_bytes", str(number)).set(resident_bytes)

    def add_processes(self, folder: str) -> None:
        """Adds the counters and histograms of other processes to those here.

        Args:
            folder: Where ``prometheus_client`` keeps them in files (its PROMETHEUS_MULTIPROC_DIR).
        """
        self._processes = MultiProcessCollector(None, folder)

    # What is read when Prometheus asks.

    def watch_queues(self, lengths: Callable[[], Mapping[str, int]], limit: int) -> None:
        """Exports the lengths of the queues, and the limit of each. Called when scraped."""
        for queue in _QUEUES:
            self._gauge("gradcam_queue_length", queue).set_function(
                _reading(lambda queue=queue: lengths().get(queue, 0))  # type: ignore[misc]
            )
            self._gauge("gradcam_queue_limit", queue).set(limit)

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Exports the number of requests in work. Called on the scraping thread."""
        self._gauge("gradcam_in_flight").set_function(_reading(count))

    def watch_worker_threads(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Exports the threads that work, by state. Called on the scraping thread."""
        for state in ("busy", "abandoned"):
            self._gauge("gradcam_worker_threads", state).set_function(
                _reading(lambda state=state: counts()[state])  # type: ignore[misc]
            )

    def watch_held(self, held: Callable[[str], int]) -> None:
        """Exports the bytes that requests hold, by state. Called on the scraping thread."""
        for state in HoldState:
            self._gauge("gradcam_held_bytes", state).set_function(_reading(partial(held, state)))

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Exports whether requests are let in. Called on the scraping thread."""
        self._gauge("gradcam_ready").set_function(_reading(ready))

    # What is served.

    def set_build(self, version: str, tensorflow: str) -> None:
        """The versions of this server and of its TensorFlow."""
        build_info = self._gauges["gradcam_build_info"]
        build_info.clear()
        build_info.labels(version, tensorflow, platform.python_version()).set(1)

    def set_models(self, models: Iterable[ModelInfo]) -> None:
        """The models that are served now. Only their ids become values of the label model."""
        infos, gauge = set(models), self._gauges["gradcam_model_info"]
        self.know_models(info.model for info in infos)
        for info in infos:
            gauge.labels(*info).set(1)
        for info in self._model_infos - infos:
            gauge.remove(*info)
        self._model_infos = infos

    def know_models(self, models: Iterable[str]) -> None:
        """The ids of models that may be values of the label model, beside those before."""
        # Those of an old engine still finish batches.
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
        # Rates need a 0 to begin with: it is there where all values are known.
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


class _Sum:
    """A registry, with the counters and histograms of others added to its own. To be encoded."""

    def __init__(self, registry: CollectorRegistry, others: MultiProcessCollector) -> None:
        self._registry, self._others = registry, others

    def collect(self) -> Iterator[Metric]:
        """Yields each metric of the registry."""
        collected = self._others.collect()
        added = {metric.name: metric for metric in collected if metric.type != "gauge"}
        for metric in self._registry.collect():
            if (other := added.get(metric.name)) is not None:
                _add(metric, other)
            yield metric


def _add(metric: Metric, other: Metric) -> None:
    """Adds the values of another metric of the same kind, series by series."""
    sums = {_series(sample): sample for sample in metric.samples}
    for sample in other.samples:
        mine = sums.get(_series(sample))
        value = sample.value + (mine.value if mine is not None else 0)
        sums[_series(sample)] = sample._replace(value=value)
    metric.samples = list(sums.values())


def _series(sample: Sample) -> tuple[str, frozenset[tuple[str, str]]]:
    return sample.name, frozenset(sample.labels.items())


def _reading(read: Callable[[], float]) -> Callable[[], float]:
    """Makes a failing reading NaN: it must not take the other metrics along."""

    def reading() -> float:
        try:
            return float(read())
        except Exception:
            logger.exception("A metric could not be read")
            return math.nan

    return reading
