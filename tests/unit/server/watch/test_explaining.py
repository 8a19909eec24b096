"""Deadlines, retries and pauses of the calls for frames."""

import asyncio
from contextlib import suppress

import grpc
import pytest

from gradcam_client import GradCamError, OverloadedError, UnavailableError
from gradcam_client.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    UnauthenticatedError,
)
from gradcam_server.watch.explaining import FrameExplainer
from support.virtual_time import run
from support.watching import Device, make_frame

UNAVAILABLE = UnavailableError(grpc.StatusCode.UNAVAILABLE, "draining")


def explainer(device: Device, pauses: list[float] | None = None) -> FrameExplainer:
    return FrameExplainer(
        device,
        {"method": "layercam"},
        max_lag_s=0.5,
        on_pause=(pauses if pauses is not None else []).append,
        clock=asyncio.get_running_loop().time,
    )


def now() -> float:
    return asyncio.get_running_loop().time()


def test_the_deadline_of_a_live_frame_is_what_is_left_of_its_lag() -> None:
    """The deadline that the server gets is max_lag_s after the frame was read."""

    async def explain() -> Device:
        device = Device(0.01)
        await explainer(device).explain(make_frame(read_at=now() - 0.2), (281,))
        return device

    device = run(explain())
    assert device.timeouts_s == [pytest.approx(0.3)]
    assert device.options == [{"classes": [281], "method": "layercam"}]


def test_a_frame_that_is_too_old_is_not_sent() -> None:
    """No call is made for an answer that would be too late."""

    async def explain() -> Device:
        device = Device(0.01)
        with pytest.raises(DeadlineExceededError, match="older than --max-lag 0.5"):
            await explainer(device).explain(make_frame(read_at=now() - 0.6))
        return device

    assert not run(explain()).timeouts_s


@pytest.mark.parametrize(
    ("error", "bounds_s"),
    [
        (UNAVAILABLE, (0, 0.1)),
        (OverloadedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", 0.7), (0.7, 0.8)),
        (UnauthenticatedError(grpc.StatusCode.UNAUTHENTICATED, "no token"), (0.1, 0.1)),
    ],
    ids=["unavailable", "asked for", "revoked token"],
)
def test_an_error_costs_a_live_frame_and_a_pause(
    error: GradCamError, bounds_s: tuple[float, float]
) -> None:
    """There is one attempt, and no call for as long as the server asked for."""
    pauses: list[float] = []

    async def explain() -> Device:
        device = Device(0.01)
        device.fault = lambda: error
        with pytest.raises(type(error)):
            await explainer(device, pauses).explain(make_frame(read_at=now()))
        return device

    assert len(run(explain()).timeouts_s) == 1
    assert bounds_s[0] <= pauses[0] <= bounds_s[1]


def test_pauses_grow_until_an_answer_comes() -> None:
    """A server that is away for long is asked every few seconds, and at once when it is back."""
    pauses: list[float] = []
    revoked = UnauthenticatedError(grpc.StatusCode.UNAUTHENTICATED, "no token")  # no jitter

    async def explain() -> None:
        device = Device(0.01)
        one = explainer(device, pauses)
        for fault in [revoked] * 12 + [None, revoked]:
            device.fault = lambda fault=fault: fault  # type: ignore[misc]
            with suppress(UnauthenticatedError):
                await one.explain(make_frame(read_at=now()))

    run(explain())
    assert pauses[:3] == [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.4)]
    assert pauses[11] == 5.0
    assert pauses[12] == pytest.approx(0.1)


def test_a_frame_that_is_the_cause_of_its_error_pauses_nothing() -> None:
    """The next frame is sent at once."""
    pauses: list[float] = []

    async def explain() -> None:
        device = Device(0.01)
        device.fault = lambda: InvalidRequestError(grpc.StatusCode.INVALID_ARGUMENT, "too large")
        with pytest.raises(InvalidRequestError):
            await explainer(device, pauses).explain(make_frame(read_at=now()))

    run(explain())
    assert not pauses


def test_a_frame_of_a_file_is_retried_through_a_restart() -> None:
    """A server that is away for a minute costs a file's frame only time."""

    async def explain() -> float:
        device, began_at = Device(0.01), now()
        device.fault = lambda: UNAVAILABLE if now() < began_at + 60 else None
        await explainer(device).explain(make_frame(read_at=now(), is_live=False))
        return now() - began_at

    assert 60 < run(explain()) < 70


def test_a_file_is_given_up_in_the_end() -> None:
    """A server that stays away fails the frame, with the server's error."""

    async def explain() -> float:
        device, began_at = Device(0.01), now()
        device.fault = lambda: UNAVAILABLE
        with pytest.raises(UnavailableError):
            await explainer(device).explain(make_frame(read_at=now(), is_live=False))
        return now() - began_at

    assert 280 < run(explain()) < 301


def test_an_invalid_file_is_not_retried() -> None:
    """An error of the file itself ends its only attempt."""

    async def explain() -> Device:
        device = Device(0.01)
        device.fault = lambda: InvalidRequestError(grpc.StatusCode.INVALID_ARGUMENT, "no image")
        with pytest.raises(InvalidRequestError):
            await explainer(device).explain(make_frame(is_live=False))
        return device

    assert len(run(explain()).timeouts_s) == 1
