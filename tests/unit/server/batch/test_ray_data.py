"""Warnings of a job on Ray; jobs themselves are in the integration tests."""

import time
from collections.abc import Callable

import pytest

ray = pytest.importorskip("ray")

from gradcam_server.batch import ray_data  # noqa: E402 - it imports Ray


def wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_lost_gpus_are_told_once_and_so_is_their_return(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what a job waits for, what else can be done, and when it goes on."""
    resources, looks = {"GPU": 2.0}, []

    def look() -> dict[str, float]:
        looks.append(dict(resources))
        return resources

    def wait_for_looks() -> None:
        before = len(looks)
        wait(lambda: len(looks) > before + 2)

    monkeypatch.setattr(ray, "cluster_resources", look)
    with ray_data.gpu_warnings(2 * 0.9999, interval_s=0.001):
        wait_for_looks()
        assert not caplog.records
        resources["GPU"] = 1.0
        wait_for_looks()
        del resources["GPU"]
        wait_for_looks()
        resources["GPU"] = 2.0
        wait_for_looks()
    before = len(looks)
    time.sleep(0.02)
    assert len(looks) == before
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    lost, back = caplog.messages
    assert "need 1.9998 GPUs, and the cluster has 1 left" in lost
    assert back == "The cluster has 2 GPUs again"


def test_a_job_without_gpus_misses_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster without GPUs logs no warning."""
    looks: list[None] = []

    def look() -> dict[str, float]:
        looks.append(None)
        return {"CPU": 2.0}

    monkeypatch.setattr(ray, "cluster_resources", look)
    with ray_data.gpu_warnings(0, interval_s=0.001):
        wait(lambda: len(looks) > 2)
    assert not caplog.records
