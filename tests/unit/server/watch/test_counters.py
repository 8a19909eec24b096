"""Counts of frames, as text and as metrics."""

import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gradcam_server.batch.errors import OutputError
from gradcam_server.watch.counters import Counters, MetricsPort
from gradcam_server.watch.frames import Status
from support.watch_results import explained, failed, frame


def counted() -> Counters:
    """Returns counters of two sources, of which one has had frames of all kinds."""
    counters = Counters(["clip", "door"])
    for _ in range(1200):
        counters.read("clip")
    counters.shed("clip")
    counters.add("clip", "reopened")
    counters.add("clip", "failed")
    counters.finished(explained(lag_s=0.25), audited=False)
    counters.finished(explained(lag_s=0.125), audited=True)
    counters.finished(explained(frame(number=3), status=Status.REUSED, lag_s=0.03), audited=False)
    counters.finished(failed(), audited=False)
    return counters


def test_a_line_has_all_counts() -> None:
    """What has not happened is left out, but for frames read and explained."""
    assert counted().line() == (
        "clip: 1,200 read, 2 explained (1 audited), 1 reused, 1 shed, 2 failed, reopened 1 x, "
        "lag 30 ms (at most 250); door: 0 read, 0 explained"
    )
    assert counted().summary().count("\n") == 1


def test_a_failed_frame_has_no_lag() -> None:
    """The lag is that of answers: an error after a long wait does not hide how late they are."""
    counts = counted().snapshot()["clip"]
    assert (counts.lag_s, counts.max_lag_s, counts.sum_lag_s) == (0.03, 0.25, 0.405)


def test_a_snapshot_stays_as_it_is() -> None:
    """Later frames do not change it."""
    counters = counted()
    before = counters.snapshot()["clip"]
    counters.read("clip")
    assert (before.read, counters.snapshot()["clip"].read) == (1200, 1201)


def test_an_unknown_event_is_refused() -> None:
    """Instead of being counted nowhere."""
    with pytest.raises(ValueError, match="no count 'lag_s'; there are read, explained"):
        counted().add("clip", "lag_s")


def test_no_count_is_lost_between_threads() -> None:
    """Readers, the loop and the writer count at the same time."""
    counters = Counters(["clip"])

    def count() -> None:
        for _ in range(2000):
            counters.read("clip")
            counters.finished(explained(), audited=False)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = counters.snapshot()["clip"]
    assert (counts.read, counts.explained) == (8000, 8000)


def test_the_metrics_of_prometheus() -> None:
    """Their names and labels are part of the interface; outcomes are there from the start."""
    registry = CollectorRegistry()
    registry.register(counted())
    lines = generate_latest(registry).decode().splitlines()
    for line in (
        'gradcam_watch_read_frames_total{source="clip"} 1200.0',
        'gradcam_watch_frames_total{outcome="explained",source="clip"} 2.0',
        'gradcam_watch_frames_total{outcome="reused",source="clip"} 1.0',
        'gradcam_watch_frames_total{outcome="shed",source="clip"} 1.0',
        'gradcam_watch_frames_total{outcome="failed",source="clip"} 2.0',
        'gradcam_watch_frames_total{outcome="failed",source="door"} 0.0',
        'gradcam_watch_audited_frames_total{source="clip"} 1.0',
        'gradcam_watch_reopened_total{source="clip"} 1.0',
        'gradcam_watch_lag_seconds_count{source="clip"} 3.0',
        'gradcam_watch_lag_seconds_sum{source="clip"} 0.405',
        'gradcam_watch_last_lag_seconds{source="clip"} 0.03',
        'gradcam_watch_max_lag_seconds{source="clip"} 0.25',
    ):
        assert line in lines


def test_the_metrics_are_served() -> None:
    """With those of the process; after the end the port is free."""
    for _ in range(2):
        port = MetricsPort(counted(), 0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port.port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        with pytest.raises(OutputError, match=r"--metrics-port \d+: it cannot be used"):
            MetricsPort(counted(), port.port)
        port.close()
        assert 'gradcam_watch_read_frames_total{source="clip"} 1200.0' in text
        assert "process_open_fds" in text
