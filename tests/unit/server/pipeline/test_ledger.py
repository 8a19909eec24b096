"""The memory that callers hold."""

import asyncio
import itertools
from contextlib import suppress

import pytest

from gradcam_server.domain.hold_state import HoldState
from gradcam_server.errors import InvalidRequestError, QueueFullError
from gradcam_server.pipeline.ledger import Claim, Hold, Ledger


async def reserve(ledger: Ledger, caller: str, *sizes: int, wait: bool = False) -> Claim:
    claim = ledger.claim(caller)
    await claim.reserve(sizes, wait=wait)
    return claim


async def test_bytes_are_counted_by_state_and_caller_until_the_release() -> None:
    """A hold moves from state to state, may shrink, never grows, and is released once."""
    ledger = Ledger(1000)
    claim = ledger.claim("alice")
    claim.receive(100)
    assert set(ledger.held) == {state.value for state in HoldState}
    assert ledger.held["received"] == sum(ledger.held.values()) == 100
    one, other = await claim.reserve([300, 150], wait=False)
    assert (ledger.held["received"], ledger.held["decoding"]) == (0, 450)
    one.move(HoldState.WAITING)
    other.move(HoldState.SENDING, 70)
    other.move(HoldState.SENDING, 900)
    assert (ledger.held["waiting"], ledger.held["sending"]) == (300, 70)
    assert ledger.held_by("alice") == ledger.total == 370
    for _ in range(2):
        claim.release()
        one.move(HoldState.RENDERING)
        assert ledger.total == ledger.held_by("alice") == 0
        assert not any(ledger.held.values())


async def test_a_request_that_can_never_fit_is_refused_for_good() -> None:
    """Alone or as the sum of the images of one message; the error names the setting."""
    ledger = Ledger(1000)
    for sizes in ([1001], [400, 400, 400]):
        with pytest.raises(InvalidRequestError, match=r"1,\d{3} bytes .* 1,000 .*--max-held-bytes"):
            await ledger.claim("").reserve(sizes, wait=True)
    with pytest.raises(InvalidRequestError, match="--max-held-bytes"):
        ledger.claim("").receive(1001)
    assert ledger.total == 0


async def test_one_request_alone_may_have_all() -> None:
    """A request within the limit runs when nothing is held, also in two steps of a unary call."""
    ledger = Ledger(1000)
    claim = ledger.claim("a")
    claim.receive(600)
    (hold,) = await claim.reserve([1000], wait=False)
    with pytest.raises(QueueFullError) as caught:
        ledger.claim("b").receive(1)
    assert caught.value.retry_after_s > 0
    hold.move(HoldState.SENDING, 10)
    ledger.claim("b").receive(1)


async def test_a_caller_leaves_as_much_as_it_holds() -> None:
    """However much it asks for: the next caller has half of the rest, and so on."""
    ledger = Ledger(1024)
    for caller, share in (("a", 512), ("b", 256), ("c", 128), ("d", 64)):
        with suppress(QueueFullError):
            for _ in range(1025):
                await reserve(ledger, caller, 1)
        assert ledger.held_by(caller) == share


async def test_a_refused_call_holds_nothing() -> None:
    """Neither the received bytes nor the reserved bytes, once its call has ended."""
    ledger = Ledger(1000)
    await reserve(ledger, "a", 500)
    claim = ledger.claim("b")
    claim.receive(100)
    with pytest.raises(QueueFullError):
        await claim.reserve([450], wait=False)
    claim.release()
    assert (ledger.total, ledger.held_by("b")) == (500, 0)


async def test_streams_wait_for_room_in_their_order() -> None:
    """A large request delays later requests of its own caller, and no others."""
    ledger, order = Ledger(1000), []
    first = await reserve(ledger, "other", 400)

    async def ask(caller: str, size: int) -> Claim:
        claim = await reserve(ledger, caller, size, wait=True)
        order.append((caller, size))
        return claim

    tasks = [asyncio.create_task(ask(*one)) for one in (("a", 700), ("a", 10), ("b", 20))]
    await asyncio.sleep(0.01)
    assert order == [("b", 20)]
    first.release()
    (await tasks[2]).release()
    await asyncio.wait_for(tasks[0], 5)
    assert order == [("b", 20), ("a", 700)]
    tasks[0].result().release()
    await asyncio.wait_for(tasks[1], 5)


async def test_nobody_who_holds_bytes_waits_for_more() -> None:
    """Messages of many images, each of more than its part of the limit, all come through."""
    ledger = Ledger(1000)

    async def answer(caller: str) -> None:
        claim = ledger.claim(caller)
        holds: list[Hold] = await claim.reserve([200, 200, 200], wait=True)
        for state, hold in itertools.product(HoldState, holds):
            hold.move(state)
            await asyncio.sleep(0)
        claim.release()

    async with asyncio.timeout(10):
        await asyncio.gather(*(answer(f"caller {number % 3}") for number in range(20)))
    assert ledger.total == 0


@pytest.mark.parametrize("order", ["cancel, release", "release, cancel", "release, wake, cancel"])
async def test_a_wait_cancelled_as_it_is_granted_loses_nothing(order: str) -> None:
    """Granted bytes come back; the others are admitted, and none fails."""
    ledger = Ledger(1000)
    holding = await reserve(ledger, "a", 800)
    tasks = [
        asyncio.create_task(reserve(ledger, caller, 600, wait=True)) for caller in ("b", "c", "d")
    ]
    await asyncio.sleep(0)
    for step in order.split(", "):
        match step:
            case "cancel":
                tasks[0].cancel()
            case "release":
                holding.release()
            case "wake":
                await asyncio.sleep(0)
    claims = []
    for task in tasks:
        try:
            claims.append(await asyncio.wait_for(task, 5))
        except asyncio.CancelledError:
            continue
        claims[-1].release()
    assert len(claims) >= 2
    if len(claims) == 3:  # it was awake before it was cancelled
        assert order == "release, wake, cancel"
    assert ledger.total == 0


async def test_settled_tells_that_a_claim_waits_no_more() -> None:
    """Admitted, refused or released: a stream may read on."""
    ledger = Ledger(100)
    claim = await reserve(ledger, "a", 60)
    assert claim.settled.is_set()
    waiting, refused = ledger.claim("b"), ledger.claim("b")
    task = asyncio.create_task(waiting.reserve([60], wait=True))
    await asyncio.sleep(0)
    assert not waiting.settled.is_set()
    with pytest.raises(QueueFullError):
        await refused.reserve([60], wait=False)
    assert refused.settled.is_set()
    claim.release()
    await task
    assert waiting.settled.is_set()
