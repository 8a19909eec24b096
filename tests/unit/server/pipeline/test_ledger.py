"""Who holds how much memory."""

import asyncio
import itertools
from contextlib import suppress

import pytest

from gradcam_server.domain.hold_state import HoldState
from gradcam_server.errors import InvalidRequestError, QueueFullError
from gradcam_server.pipeline.ledger import Claim, Hold, Ledger


async def let_in(ledger: Ledger, caller: str, *sizes: int, wait: bool = False) -> Claim:
    claim = ledger.claim(caller)
    await claim.reserve(sizes, wait=wait)
    return claim


async def test_bytes_are_counted_by_state_and_caller_until_the_release() -> None:
    """A hold moves from state to state, may shrink, never grows, and is given back once."""
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


async def test_what_can_never_fit_is_refused_for_good() -> None:
    """Alone or as the sum of the images of one message; the error names the setting."""
    ledger = Ledger(1000)
    for sizes in ([1001], [400, 400, 400]):
        with pytest.raises(InvalidRequestError, match=r"1,\d{3} bytes .* 1,000 .*--max-held-bytes"):
            await ledger.claim("").reserve(sizes, wait=True)
    with pytest.raises(InvalidRequestError, match="--max-held-bytes"):
        ledger.claim("").receive(1001)
    assert ledger.total == 0


async def test_one_request_alone_may_have_all() -> None:
    """What fits the limit runs when nothing is held, also in the two steps of a unary call."""
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
    """However much it asks for: the next one has half of the rest, and so on."""
    ledger = Ledger(1024)
    for caller, share in (("a", 512), ("b", 256), ("c", 128), ("d", 64)):
        with suppress(QueueFullError):
            for _ in range(1025):
                await let_in(ledger, caller, 1)
        assert ledger.held_by(caller) == share


async def test_a_refused_call_holds_nothing() -> None:
    """Neither what it received nor what it asked for, once its call has ended."""
    ledger = Ledger(1000)
    await let_in(ledger, "a", 500)
    claim = ledger.claim("b")
    claim.receive(100)
    with pytest.raises(QueueFullError):
        await claim.reserve([450], wait=False)
    claim.release()
    assert (ledger.total, ledger.held_by("b")) == (500, 0)


async def test_streams_wait_for_room_in_their_order() -> None:
    """A large request holds up what its own caller sent later, and nobody else."""
    ledger, order = Ledger(1000), []
    first = await let_in(ledger, "other", 400)

    async def ask(caller: str, size: int) -> Claim:
        claim = await let_in(ledger, caller, size, wait=True)
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
async def test_giving_up_in_the_moment_of_being_let_in_loses_nothing(order: str) -> None:
    """What was handed out already comes back; the others are let in, and nobody fails."""
    ledger = Ledger(1000)
    holding = await let_in(ledger, "a", 800)
    tasks = [
        asyncio.create_task(let_in(ledger, caller, 600, wait=True)) for caller in ("b", "c", "d")
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
    """Let in, refused or released: a stream may read on."""
    ledger = Ledger(100)
    claim = await let_in(ledger, "a", 60)
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
