"""The table of all metrics, from which ``Metrics`` and the documentation are made.

Labels hold only values that the operator or this code chose, never values that a client sent, so
the number of series is bounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gradcam_server.domain.hold_state import HoldState


@dataclass(frozen=True)
class Definition:
    """A metric.

    Attributes:
        name: As it is exported; a histogram's series add _bucket, _sum and _count.
        type: Its type in Prometheus.
        help: What it counts or measures, for people.
        labels: The labels, each with its values; no values if they are not known here.
        buckets: Upper bounds of a histogram, without infinity.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()


QUEUES = ("one_pass", "many_pass")
STAGES = ("decode", "queue", "compile", "compute", "render")
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STAGE_S = (0.0001, 0.00025, 0.0005, *_REQUEST_S[:-1])
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_AUC = tuple(step / 20 for step in range(1, 21))

DEFINITIONS = (
    Definition(
        "gradcam_requests_total",
        "counter",
        "Requests answered or failed. A stream counts as one request, and each image of it as "
        "another, NAME.image or NAME.request. The model is empty if none is named, or it is not "
        "served.",
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
        {"stage": STAGES},
        _STAGE_S,
    ),
    Definition(
        "gradcam_batches_total",
        "counter",
        "Batches that ran, by why they were dispatched: full, the oldest image had waited long "
        "enough (delay), or the device was free (idle).",
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
        "Padding in batches, counted in images.",
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
        "passes have their own queue.",
        {"queue": QUEUES},
    ),
    Definition(
        "gradcam_queue_limit",
        "gauge",
        "Maximum number of requests in the queues of all models, by queue.",
        {"queue": QUEUES},
    ),
    Definition("gradcam_in_flight", "gauge", "Requests in work, until their answers are sent."),
    Definition(
        "gradcam_held_bytes",
        "gauge",
        "Memory that requests in work hold or have reserved (--max-held-bytes), by its use: a "
        "received message, decoding, waiting for the device, rendering, an answer not yet sent.",
        {"state": tuple(HoldState)},
    ),
    Definition(
        "gradcam_worker_threads",
        "gauge",
        "Threads that decode or render: busy for callers that wait, or abandoned by callers that "
        "are gone, until the work has ended.",
        {"state": ("busy", "abandoned")},
    ),
    Definition(
        "gradcam_dropped_total",
        "counter",
        "Admitted requests that were dropped: the caller cancelled, or the deadline passed.",
        {"reason": ("cancelled", "deadline")},
    ),
    Definition(
        "gradcam_rejected_total",
        "counter",
        "Requests that were not admitted.",
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
        "Requests by the name of their token; empty without a token.",
        {"token": (), "code": ()},
    ),
    Definition(
        "gradcam_compilations_total",
        "counter",
        "Graphs compiled, warm-up included. It is constant under steady traffic.",
    ),
    Definition("gradcam_ready", "gauge", "1 while requests are admitted, else 0."),
    Definition("gradcam_engine_up", "gauge", "1 while the engine's process answers, else 0."),
    Definition(
        "gradcam_engine_restarts_total", "counter", "Engines that were lost and started again."
    ),
    Definition(
        "gradcam_engine_resident_bytes",
        "gauge",
        "Memory in use by the engine's process; 0 while there is no engine.",
    ),
    Definition(
        "gradcam_device_memory_bytes",
        "gauge",
        "Memory of a device in use by TensorFlow, and its peak.",
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
        "Memory in use by each front end beside the first; 0 while it is being started again.",
        {"front_end": ()},
    ),
    Definition(
        "gradcam_build_info",
        "gauge",
        "Always 1; the labels are the versions that run.",
        {"version": (), "tensorflow": (), "python": ()},
    ),
    Definition(
        "gradcam_model_info",
        "gauge",
        "1 for each model that is served; the labels describe it. The compiler is that of Grad-CAM "
        "at the layer, and the streams are the batches that it computes at the same time: where "
        "--compiler or --compute-streams is auto, those that were chosen.",
        {"model": (), "weights": (), "layer": (), "compiler": (), "streams": ()},
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
