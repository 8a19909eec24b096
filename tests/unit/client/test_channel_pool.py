"""Which channel of the pool an attempt gets."""

from collections import Counter

import grpc
import pytest

from gradcam_client import GradCamError, OverloadedError, ServerError, UnavailableError
from gradcam_client.channel_pool import ChannelPool, PooledChannel

CODE = grpc.StatusCode
AWAY = UnavailableError(CODE.UNAVAILABLE, "away")


def make_pool(*servers: int) -> ChannelPool:
    channel = grpc.insecure_channel("127.0.0.1:1")  # connects when it is used
    pool = ChannelPool(lambda: [(server, "127.0.0.1:1", channel) for server in servers])
    pool.open()
    return pool


def acquire(pool: ChannelPool, now: float = 0, tried: Counter[PooledChannel] | None = None) -> int:
    """The number of the channel that an attempt gets and keeps."""
    return pool.all.index(pool.acquire(Counter() if tried is None else tried, now))


def test_the_channel_with_the_lowest_load_is_used() -> None:
    """A free channel comes before busy channels; channels of equal load take turns."""
    pool = make_pool(0, 1, 0, 1)
    assert [acquire(pool) for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    pool.release(pool.all[1])
    pool.release(pool.all[1])
    assert [acquire(pool) for _ in range(2)] == [1, 2]


def test_a_call_goes_to_a_server_that_it_has_not_tried() -> None:
    """Another server comes first, then another channel, then the same channel, at any load."""
    pool = make_pool(0, 1, 0)
    pool.all[1].load = 9
    tried = Counter({pool.all[0]: 1})
    assert acquire(pool, tried=tried) == 1
    tried[pool.all[1]] += 1
    assert acquire(pool, tried=tried) == 2


def test_a_server_that_asked_for_a_pause_is_avoided() -> None:
    """No channel of the server is used for as long as it asked, and no longer."""
    pool = make_pool(0, 1, 0)
    refusal = OverloadedError(CODE.RESOURCE_EXHAUSTED, "full", retry_after_s=7)
    pool.failed(pool.all[0], refusal, now=10)
    assert [acquire(pool, now=16) for _ in range(3)] == [1, 1, 1]
    assert pool.available_in_s(now=16) == 0
    assert acquire(pool, now=17) != 1


def test_a_server_without_a_connection_is_avoided_briefly() -> None:
    """A server that cannot be reached is tried about once a second, not at each call."""
    pool = make_pool(0, 1)
    pool.failed(pool.all[0], AWAY, now=10)
    assert [acquire(pool, now=10.9) for _ in range(2)] == [1, 1]
    assert acquire(pool, now=11) == 0


@pytest.mark.parametrize(
    "error", [OverloadedError(CODE.RESOURCE_EXHAUSTED, "full"), ServerError(CODE.INTERNAL, "?")]
)
def test_other_errors_are_no_reason_to_avoid_a_server(error: GradCamError) -> None:
    """A failed call says nothing about the next call."""
    pool = make_pool(0, 1)
    pool.failed(pool.all[0], error, now=10)
    assert {acquire(pool, now=10) for _ in range(2)} == {0, 1}


def test_if_all_servers_are_avoided_all_are_used() -> None:
    """Avoiding a server is a preference: a call always gets a channel."""
    pool = make_pool(0, 1)
    for channel in pool.all:
        pool.failed(channel, UnavailableError(CODE.UNAVAILABLE, "", 5.0 + channel.server), now=0)
    assert {acquire(pool, now=1) for _ in range(2)} == {0, 1}
    assert pool.available_in_s(now=1) == 4
