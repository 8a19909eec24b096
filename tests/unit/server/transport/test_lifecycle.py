"""The phases of a server, and which requests it admits."""

import asyncio

import pytest

from gradcam_server.errors import NotReadyError
from gradcam_server.transport.lifecycle import Lifecycle


async def test_requests_are_let_in_only_while_serving() -> None:
    """Before and after, the error has the reason and the time to retry."""
    lifecycle = Lifecycle()
    with pytest.raises(NotReadyError, match="warming up"):
        lifecycle.begin_request()
    lifecycle.serve()
    lifecycle.begin_request()
    assert lifecycle.in_work == 1
    lifecycle.end_request()
    lifecycle.drain()
    with pytest.raises(NotReadyError, match="shutting down") as caught:
        lifecycle.begin_request()
    assert caught.value.retry_after_s > 0
    assert lifecycle.in_work == 0


async def test_a_lost_engine_lets_nobody_in_until_it_is_back() -> None:
    """The error has the expected time; a server that drains stays draining."""
    lifecycle = Lifecycle()
    lifecycle.serve()
    lifecycle.restart(30)
    with pytest.raises(NotReadyError, match="being started again") as caught:
        lifecycle.begin_request()
    assert 20 < caught.value.retry_after_s <= 30
    with pytest.raises(NotReadyError):
        lifecycle.check_engine()
    lifecycle.serve()
    lifecycle.check()
    lifecycle.drain()
    lifecycle.restart(30)
    lifecycle.serve()
    lifecycle.check_engine()
    with pytest.raises(NotReadyError, match="shutting down"):
        lifecycle.check()


async def test_draining_waits_for_requests_in_work() -> None:
    """The server is idle when the last request ends, however it ends."""
    lifecycle = Lifecycle()
    lifecycle.serve()
    lifecycle.begin_request()
    lifecycle.begin_request()
    lifecycle.drain()
    idle = asyncio.create_task(lifecycle.wait_idle())
    lifecycle.end_request()
    await asyncio.sleep(0)
    assert not idle.done()
    lifecycle.end_request()
    await asyncio.wait_for(idle, 1)


async def test_what_waits_while_the_server_drains_is_refused() -> None:
    """Requests that wait, or begin to, are refused; others go on, and a finished wait is fine."""
    lifecycle = Lifecycle()
    lifecycle.serve()
    await asyncio.wait_for(lifecycle.pause(0.01), 10)
    waiting = asyncio.create_task(lifecycle.pause(3600))
    await asyncio.sleep(0)
    lifecycle.drain()
    for refused in (waiting, lifecycle.pause(3600)):
        with pytest.raises(NotReadyError, match="shutting down"):
            await asyncio.wait_for(refused, 10)
    await asyncio.wait_for(lifecycle.pause(0), 10)


async def test_refusals_are_held_until_released() -> None:
    """While gRPC sends GOAWAY, refused clients do not come back."""
    lifecycle = Lifecycle()
    await asyncio.wait_for(lifecycle.before_refusal(), 1)  # at once, before
    await lifecycle.hold_refusals()
    refusals = [asyncio.create_task(lifecycle.before_refusal()) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert not any(refusal.done() for refusal in refusals)
    lifecycle.release_refusals()
    await asyncio.wait_for(asyncio.gather(*refusals), 1)


async def test_a_drain_ends_what_waits_for_clients() -> None:
    """Reading from a stream ends, now or when it begins; messages already read are not lost."""
    lifecycle = Lifecycle()
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(lifecycle.unless_draining(loop.create_future()))
    done = loop.create_future()
    read = asyncio.create_task(lifecycle.unless_draining(done))
    await asyncio.sleep(0)
    done.set_result("message")
    lifecycle.drain()
    assert (await waiting, await read) == (None, "message")
    assert await lifecycle.unless_draining(loop.create_future()) is None


@pytest.mark.parametrize("draining", [False, True])
async def test_who_is_cancelled_while_it_reads_is_cancelled(draining: bool) -> None:
    """Also if the server drains at the same time; the read is cancelled too."""
    lifecycle = Lifecycle()
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    reading = asyncio.create_task(lifecycle.unless_draining(future))
    await asyncio.sleep(0)
    reading.cancel()
    if draining:
        lifecycle.drain()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert future.cancelled()
