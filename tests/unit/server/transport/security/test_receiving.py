"""The pacing of large messages."""

import asyncio

import pytest

from gradcam_server.transport.security import receiving as module
from gradcam_server.transport.security.receiving import MIN_LARGE_BYTES, Receiving, turn_s

LARGE = 31 << 20


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still: a paced caller waits for ever."""
    return Clock()


async def is_paced(receiving: Receiving, caller: str) -> bool:
    """Returns whether a caller's next message has to wait."""
    turn = asyncio.create_task(receiving.turn(caller))
    await asyncio.sleep(0.01)
    if turn.done():
        return False
    turn.cancel()
    await asyncio.wait({turn})
    return True


async def send(receiving: Receiving, caller: str, *sizes: int) -> None:
    for size in sizes:
        await asyncio.wait_for(receiving.turn(caller), 10)
        receiving.received(caller, size)


async def test_large_messages_wait_while_another_caller_sends_small_ones(clock: Clock) -> None:
    """They wait until the pause is over; small messages never wait."""
    receiving = Receiving(clock)
    await send(receiving, "small", 1000)
    await send(receiving, "large", LARGE)
    assert await is_paced(receiving, "large")
    await send(receiving, "small", *[1000] * 100)
    clock.now += 1
    assert not await is_paced(receiving, "large")


@pytest.mark.parametrize("others", [0, 1, 4])
async def test_nothing_waits_while_all_messages_are_large(clock: Clock, others: int) -> None:
    """Callers of large messages only are not paced."""
    receiving = Receiving(clock)
    for caller in range(1 + others):
        await send(receiving, str(caller), LARGE)
    clock.now += module._ACTIVE_S
    for caller in range(1 + others):
        await send(receiving, str(caller), *[LARGE] * 10)


async def test_nothing_waits_for_messages_below_the_limit(clock: Clock) -> None:
    """Messages with pixels of a model's size are not paced, however many there are."""
    receiving = Receiving(clock)
    await send(receiving, "small", 1000)
    await send(receiving, "pixels", *[MIN_LARGE_BYTES - 1] * 1000)


@pytest.mark.parametrize("between", [1, 4])
async def test_small_messages_between_large_ones_change_nothing(clock: Clock, between: int) -> None:
    """The caller's small messages wait too, until the caller is no longer remembered."""
    receiving = Receiving(clock)
    await send(receiving, "small", 1000)
    await send(receiving, "both", LARGE)
    clock.now += 0.5  # its pause is over
    for _ in range(between):
        await send(receiving, "both", 1000)
        assert await is_paced(receiving, "both")
        clock.now += 0.4
    clock.now += 10
    await send(receiving, "small", 1000)
    await send(receiving, "both", *[1000] * 5)


async def test_callers_of_large_messages_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller with many calls at once has as many turns as a caller with one stream."""
    monkeypatch.setattr(module, "_S_PER_BYTE", 1e-10)
    receiving, order = Receiving(), list[str]()
    for caller in ("many", "one"):
        await send(receiving, caller, LARGE)
    await send(receiving, "small", 1000)

    async def read(caller: str, count: int) -> None:
        for _ in range(count):
            await receiving.turn(caller)
            order.append(caller)
            receiving.received(caller, MIN_LARGE_BYTES)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(read("many", 1))
        group.create_task(read("one", 4))
    assert order[:8].count("one") >= 3
    assert order.count("many") == 8


async def test_large_messages_come_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes per second of all callers together are bounded."""
    monkeypatch.setattr(module, "_S_PER_BYTE", 2e-8)
    receiving = Receiving()
    for caller in "abcd":
        await send(receiving, caller, MIN_LARGE_BYTES)
    await send(receiving, "small", 1000)
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.TaskGroup() as group:
        for caller in "abcd":
            group.create_task(send(receiving, caller, *[MIN_LARGE_BYTES] * 2))
    assert loop.time() - started >= 7 * turn_s(MIN_LARGE_BYTES)


async def test_a_call_that_ends_while_it_waits_leaves_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next caller gets the turn."""
    monkeypatch.setattr(module, "_S_PER_BYTE", 1e-10)
    receiving = Receiving()
    for caller in "ab":
        await send(receiving, caller, LARGE)
    await send(receiving, "small", 1000)
    gone = [asyncio.create_task(receiving.turn("a")) for _ in range(20)]
    stays = asyncio.create_task(receiving.turn("b"))
    await asyncio.sleep(0)
    for one in gone:
        one.cancel()
    await asyncio.wait_for(stays, 10)


async def test_callers_that_have_gone_are_forgotten(clock: Clock) -> None:
    """Without tokens each connection is a caller, so accounts must not pile up."""
    receiving = Receiving(clock)
    for number in range(1000):
        await send(receiving, str(number), LARGE)
        clock.now += 1
    assert len(receiving._accounts) < 20


async def test_a_caller_is_not_remembered_for_long(clock: Clock) -> None:
    """After hours of large messages, the caller's small messages soon pass without a turn."""
    receiving = Receiving(clock)
    await send(receiving, "large", *[LARGE] * 10_000)
    clock.now += 31
    await send(receiving, "small", 1000)
    await send(receiving, "large", *[1000] * 5)


@pytest.mark.parametrize(("mebibytes", "share"), [(1, 0.8), (4, 0.6), (31, 0.2)])
def test_larger_messages_leave_a_larger_part_of_the_loop(mebibytes: int, share: float) -> None:
    """Photographs may use most of the loop's time, the largest messages a quarter."""
    size = mebibytes << 20
    assert share < size * module._S_PER_BYTE / turn_s(size) < share + 0.15
