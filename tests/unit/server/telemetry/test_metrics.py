"""The metrics, read back from the text that Prometheus gets."""

import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gradcam_server.domain.requests import Stats
from gradcam_server.telemetry.metric_table import DEFINITIONS
from gradcam_server.telemetry.metrics import Metrics, ModelInfo

RESNET = ModelInfo("resnet50", "imagenet", "conv5_block3_out", "xla")


@pytest.fixture
def metrics() -> Metrics:
    one = Metrics()
    one.set_models([RESNET])
    return one


def read(metrics: Metrics, sample: str, **labels: str) -> float | None:
    """Returns a sample from the exported text; None if it is not there."""
    text = metrics.exposition()[0].decode()
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name == sample and one.labels == labels:
                return one.value
    return None


def test_a_request_counts_by_method_model_and_code(metrics: Metrics) -> None:
    """A request counts once, and its time is in the histogram."""
    metrics.request_done("ExplainImage", "resnet50", "OK", 0.03)
    labels = {"rpc": "ExplainImage", "model": "resnet50", "code": "OK"}
    assert read(metrics, "gradcam_requests_total", **labels) == 1
    assert read(metrics, "gradcam_request_seconds_sum", rpc="ExplainImage") == 0.03
    assert read(metrics, "gradcam_request_seconds_bucket", rpc="ExplainImage", le="0.025") == 0
    assert read(metrics, "gradcam_request_seconds_bucket", rpc="ExplainImage", le="0.05") == 1


def test_names_that_clients_invent_make_no_series(metrics: Metrics) -> None:
    """A thousand unknown models are one series."""
    for number in range(1000):
        metrics.request_done("ExplainImage", f"invented-{number}", "NOT_FOUND", 0.001)
        metrics.batch_done(f"invented-{number}", 1, 1, "idle")
        metrics.faithfulness(f"invented-{number}", "gradcam", 0.5, 0.5)
    labels = {"rpc": "ExplainImage", "model": "", "code": "NOT_FOUND"}
    assert read(metrics, "gradcam_requests_total", **labels) == 1000
    assert "invented" not in metrics.exposition()[0].decode()


def test_stages_are_exported_in_seconds(metrics: Metrics) -> None:
    """Microseconds come in, seconds go out; from 100 us to 30 s there are buckets."""
    metrics.stages(Stats(decode_us=1500, queue_us=0, compute_us=29_000_000, render_us=90))
    assert read(metrics, "gradcam_stage_seconds_sum", stage="decode") == 0.0015
    assert read(metrics, "gradcam_stage_seconds_bucket", stage="render", le="0.0001") == 1
    assert read(metrics, "gradcam_stage_seconds_bucket", stage="compute", le="10.0") == 0
    assert read(metrics, "gradcam_stage_seconds_bucket", stage="compute", le="30.0") == 1


def test_compiling_is_a_stage_of_the_images_that_waited_for_it(metrics: Metrics) -> None:
    """Images that find their graph compiled do not make the quantiles of compile zero."""
    for _ in range(3):
        metrics.stages(Stats(queue_us=10))
    metrics.stages(Stats(queue_us=10, compile_us=12_000_000))
    assert read(metrics, "gradcam_stage_seconds_count", stage="compile") == 1
    assert read(metrics, "gradcam_stage_seconds_sum", stage="compile") == 12
    assert read(metrics, "gradcam_stage_seconds_count", stage="queue") == 4
    assert read(metrics, "gradcam_stage_seconds_bucket", stage="queue", le="0.0001") == 4


def test_padding_and_images_add_up_to_what_was_computed(metrics: Metrics) -> None:
    """5 images in a batch of 8 are 3 of padding."""
    metrics.batch_done("resnet50", size=5, padded_size=8, reason="delay")
    metrics.batch_done("resnet50", size=8, padded_size=8, reason="full")
    assert read(metrics, "gradcam_padding_total", model="resnet50") == 3
    assert read(metrics, "gradcam_batched_images_total", model="resnet50") == 13
    assert read(metrics, "gradcam_batches_total", model="resnet50", reason="full") == 1
    assert read(metrics, "gradcam_batch_size_bucket", model="resnet50", le="4.0") == 0
    assert read(metrics, "gradcam_batch_size_bucket", model="resnet50", le="8.0") == 2


def test_rates_have_a_zero_to_begin_with(metrics: Metrics) -> None:
    """The first refusal is an increase: the series was there before."""
    assert read(metrics, "gradcam_rejected_total", reason="queue_full") == 0
    assert read(metrics, "gradcam_dropped_total", reason="cancelled") == 0
    metrics.rejected("queue_full")
    metrics.dropped("cancelled", 3)
    assert read(metrics, "gradcam_rejected_total", reason="queue_full") == 1
    assert read(metrics, "gradcam_dropped_total", reason="cancelled") == 3


def test_compilations_of_one_engine_after_the_other_add_up(metrics: Metrics) -> None:
    """A new engine counts from 0, and the sum goes on; an unchanged heartbeat adds nothing."""
    metrics.engine_beat(100, 12, 5000, {})
    metrics.engine_beat(100, 12, 5000, {})
    metrics.engine_beat(100, 14, 6000, {"GPU:0": (10, 20)})
    metrics.engine_beat(101, 12, 4000, {})
    assert read(metrics, "gradcam_compilations_total") == 26
    assert read(metrics, "gradcam_engine_resident_bytes") == 4000
    assert read(metrics, "gradcam_device_memory_bytes", device="GPU:0", kind="peak") == 20


def test_an_engine_that_is_down_has_no_memory(metrics: Metrics) -> None:
    """The last value of a lost engine is not shown."""
    metrics.engine_beat(100, 1, 5000, {})
    metrics.set_engine_up(True)
    metrics.set_engine_up(False)
    metrics.engine_restarted()
    assert read(metrics, "gradcam_engine_up") == 0
    assert read(metrics, "gradcam_engine_resident_bytes") == 0
    assert read(metrics, "gradcam_engine_restarts_total") == 1


def test_gauges_are_read_when_prometheus_asks(metrics: Metrics) -> None:
    """They show the current values, not those at the set-up."""
    waiting: list[int] = []
    metrics.watch_queues(lambda: {"one_pass": len(waiting), "many_pass": 7}, 256)
    metrics.watch_in_flight(lambda: 2 * len(waiting))
    metrics.watch_ready(lambda: bool(waiting))
    metrics.watch_worker_threads(lambda: {"busy": len(waiting), "abandoned": 2})
    assert read(metrics, "gradcam_ready") == 0
    waiting.extend([1, 2, 3])
    assert read(metrics, "gradcam_queue_length", queue="one_pass") == 3
    assert read(metrics, "gradcam_queue_length", queue="many_pass") == 7
    assert read(metrics, "gradcam_queue_limit", queue="many_pass") == 256
    assert read(metrics, "gradcam_in_flight") == 6
    assert read(metrics, "gradcam_ready") == 1
    assert read(metrics, "gradcam_worker_threads", state="busy") == 3
    assert read(metrics, "gradcam_worker_threads", state="abandoned") == 2


def test_a_reading_that_fails_is_nan_and_the_rest_is_there(metrics: Metrics) -> None:
    """A fault in one gauge does not hide the others."""

    def fail() -> int:
        raise RuntimeError("no")

    metrics.watch_in_flight(fail)
    value = read(metrics, "gradcam_in_flight")
    assert value is not None
    assert math.isnan(value)
    assert read(metrics, "gradcam_compilations_total") == 0


def test_models_that_are_gone_are_shown_no_more(metrics: Metrics) -> None:
    """A reload replaces them; batches of the old engine still count by name."""
    new = ModelInfo("efficientnet-lite0", "embedded", "top", "tensorflow")
    metrics.set_models([new])
    assert read(metrics, "gradcam_model_info", **RESNET._asdict()) is None
    assert read(metrics, "gradcam_model_info", **new._asdict()) == 1
    metrics.batch_done("resnet50", 1, 1, "idle")
    assert read(metrics, "gradcam_batched_images_total", model="resnet50") == 1


def test_the_build_is_one_series(metrics: Metrics) -> None:
    """A new engine with another TensorFlow replaces the old one's."""
    metrics.set_build("1.0", "2.20")
    metrics.set_build("1.0", "2.21")
    builds = [
        one
        for family in metrics.registry.collect()
        for one in family.samples
        if one.name == "gradcam_build_info"
    ]
    assert [one.labels["tensorflow"] for one in builds] == ["2.21"]


def test_areas_that_are_not_numbers_do_not_poison_the_sum(metrics: Metrics) -> None:
    """One NaN would make the mean NaN for ever."""
    metrics.faithfulness("resnet50", "gradcam", math.nan, 0.25)
    metrics.faithfulness("resnet50", "gradcam", 0.75, 0.25)
    labels = {"model": "resnet50", "method": "gradcam"}
    assert read(metrics, "gradcam_faithfulness_auc_sum", curve="insertion", **labels) == 0.75
    assert read(metrics, "gradcam_faithfulness_auc_count", curve="deletion", **labels) == 2


def test_openmetrics_is_written_for_who_asks(metrics: Metrics) -> None:
    """The header Accept chooses the format."""
    assert metrics.exposition("application/openmetrics-text; version=1.0.0")[1].startswith(
        "application/openmetrics-text"
    )
    assert metrics.exposition()[1].startswith("text/plain")


def test_counts_of_other_processes_are_added(metrics: Metrics, tmp_path: Path) -> None:
    """Counters and histograms of all front ends add up; gauges are those of the first."""
    program = """
from prometheus_client import values
values.ValueClass = values.MultiProcessValue(lambda: 1)
from gradcam_server.telemetry.metrics import Metrics
metrics = Metrics()
metrics.know_models(["resnet50"])
metrics.set_front_ends(7)
metrics.request_done("ExplainImage", "resnet50", "OK", 0.03)
metrics.request_done("ExplainImage", "resnet50", "INTERNAL", 0.03)
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    metrics.set_front_ends(2)
    metrics.request_done("ExplainImage", "resnet50", "OK", 0.3)
    metrics.add_processes(str(tmp_path))
    labels = {"rpc": "ExplainImage", "model": "resnet50"}
    assert read(metrics, "gradcam_requests_total", **labels, code="OK") == 2
    assert read(metrics, "gradcam_requests_total", **labels, code="INTERNAL") == 1
    assert read(metrics, "gradcam_request_seconds_count", rpc="ExplainImage") == 3
    assert read(metrics, "gradcam_request_seconds_bucket", rpc="ExplainImage", le="0.05") == 2
    assert read(metrics, "gradcam_front_ends") == 2


def test_names_follow_the_conventions() -> None:
    """Counters end in _total, measures in their base unit, and no name is there twice."""
    names = [one.name for one in DEFINITIONS]
    assert len(set(names)) == len(names)
    for one in DEFINITIONS:
        assert one.name.startswith("gradcam_")
        assert one.name.endswith("_total") == (one.type == "counter")
        assert bool(one.buckets) == (one.type == "histogram")
        assert "_ms" not in one.name
        assert "_us" not in one.name
        assert one.help.endswith(".")


def test_threads_lose_no_counts(metrics: Metrics) -> None:
    """Requests are counted on one thread and read on another."""

    def count() -> None:
        for _ in range(500):
            metrics.token_request("ci", "OK")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(metrics, "gradcam_token_requests_total", token="ci", code="OK") == 2000
