"""Several servers, several channels, deadlines and hedging, with either client."""

import threading
import time
from collections.abc import Callable

import grpc
import pytest

from gradcam_client import (
    DeadlineExceededError,
    GradCamError,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
    ServerError,
    UnavailableError,
)
from unit.client.both import Connect
from unit.client.fake_server import FakeServer, serving

CODE = grpc.StatusCode
NOWHERE = "127.0.0.1:1"
PATIENT = RetryPolicy(max_attempts=1000, initial_backoff_s=0.02, max_backoff_s=0.02)


def images(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def port(server: FakeServer) -> str:
    return server.target.rpartition(":")[2]


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(500):
        if condition():
            break
        time.sleep(0.01)
    return condition()


# Several servers.


@pytest.mark.parametrize("form", [list, ",".join], ids=["sequence", "text"])
def test_both_servers_get_load(
    connect: Connect,
    server: FakeServer,
    other: FakeServer,
    form: Callable[[list[str]], str | list[str]],
) -> None:
    """Calls go to several addresses in turn, however these are written."""
    with connect(form([server.target, f"localhost:{port(other)}"])) as client:
        for number in range(10):
            assert client.explain(b"%d" % number).top.index == number
    assert (len(server.requests), len(other.requests)) == (5, 5)


def test_streams_are_spread(connect: Connect, server: FakeServer, other: FakeServer) -> None:
    """Streams go to several addresses in turn."""
    with connect([server.target, other.target]) as client:
        for _ in range(4):
            assert len(client.explain_stream(images(3))) == 3
    assert (len(server.received), len(other.received)) == (2, 2)


def test_killing_a_server_loses_no_request(
    connect: Connect, server: FakeServer, other: FakeServer, retry: RetryPolicy
) -> None:
    """Calls that a dying server breaks off, and all later calls, are answered by the other."""
    server.script.extend([server.hang] * 3)
    with connect([server.target, other.target], retry=retry, timeout_s=20) as client:
        timer = threading.Timer(0.3, server.stop)
        timer.start()
        found = [result.top.index for result in client.explain_together(images(6))]
        assert found == list(range(6))
        assert len(server.requests) == 3
        for _ in range(10):
            client.explain(b"7")
        timer.join()
    assert len(other.requests) == 16


def test_a_dead_server_is_skipped(connect: Connect, server: FakeServer, retry: RetryPolicy) -> None:
    """An address at which nothing listens costs no request and no long pause."""
    with connect([NOWHERE, server.target], retry=retry) as client:
        client.wait_ready(20)
        assert [client.explain(b"7").top.index for _ in range(5)] == [7] * 5
        assert len(client.explain_stream(images(5))) == 5


@pytest.mark.parametrize("code", [CODE.UNAVAILABLE, CODE.RESOURCE_EXHAUSTED])
def test_a_server_that_asks_for_a_pause_gets_it(
    connect: Connect, server: FakeServer, other: FakeServer, code: grpc.StatusCode
) -> None:
    """A draining or full server is avoided for as long as it asks; the other is used at once."""
    server.script.append(server.fail(code, retry_after_s=300))
    with connect([server.target, other.target], timeout_s=60) as client:
        for number in range(5):
            assert client.explain(b"%d" % number).top.index == number
    assert (len(server.requests), len(other.requests)) == (1, 5)


def test_a_stream_moves_to_another_server(
    connect: Connect, server: FakeServer, other: FakeServer
) -> None:
    """A stream that a draining server ends goes on elsewhere, without the pause it asked for."""
    server.streams.append(server.break_after(3, retry_after_s=300))
    with connect([server.target, other.target], timeout_s=60) as client:
        outcomes = client.explain_stream(images(9))
    assert [outcome.unwrap().top.index for outcome in outcomes] == list(range(9))
    assert [sorted(numbers) for numbers in other.received] == [[3, 4, 5, 6, 7, 8]]


def test_when_all_refuse_the_pause_is_kept(
    connect: Connect, server: FakeServer, other: FakeServer, retry: RetryPolicy
) -> None:
    """No attempt is made before the first of several servers has had the pause it asked for."""
    server.script.append(server.fail(CODE.RESOURCE_EXHAUSTED, retry_after_s=0.2))
    other.script.append(other.fail(CODE.RESOURCE_EXHAUSTED, retry_after_s=300))
    started = time.monotonic()
    with connect([server.target, other.target], retry=retry) as client:
        client.explain(b"7")
    assert time.monotonic() - started >= 0.2
    assert (len(server.requests), len(other.requests)) == (2, 1)


def test_a_restarted_server_is_found(connect: Connect) -> None:
    """A server that comes back is connected to again while a call is tried again."""
    with serving() as server:
        address = server.target
        with connect(address, retry=PATIENT, timeout_s=20) as client:
            client.explain(b"1")
            server.stop()
            with pytest.raises((UnavailableError, DeadlineExceededError)):
                client.explain(b"2", timeout_s=0.3)
            with serving(address):
                assert client.explain(b"3").top.index == 3


def test_a_target_of_several_addresses_is_balanced_by_grpc(
    connect: Connect, server: FakeServer, other: FakeServer, retry: RetryPolicy
) -> None:
    """Behind one target both servers get load, and a server that is NOT_SERVING gets none."""

    def served() -> tuple[int, int]:
        before = len(server.requests), len(other.requests)
        for _ in range(6):
            client.explain(b"7")
        return len(server.requests) - before[0], len(other.requests) - before[1]

    with connect(f"ipv4:{server.target},{other.target}", retry=retry, timeout_s=20) as client:
        assert eventually(lambda: served() == (3, 3))
        server.set_serving(False)
        assert eventually(lambda: served() == (0, 6))
        server.set_serving(True)
        assert eventually(lambda: served() == (3, 3))


def test_a_dns_name_may_stand_for_one_server(connect: Connect, server: FakeServer) -> None:
    """A dns target works with one server as well, and reports its health."""
    with connect(f"dns:///localhost:{port(server)}") as client:
        client.wait_ready(20)
        assert client.health() == "SERVING"


@pytest.mark.parametrize("target", ["", [], "a:1,,b:2", ["a:1", " "]])
def test_no_address_is_refused(connect: Connect, target: str | list[str]) -> None:
    """A target without an address is an error at once, not a connection to nowhere."""
    with pytest.raises(ValueError, match="host:port"), connect(target):
        pass


# Several channels.


def test_each_channel_is_a_connection(connect: Connect, server: FakeServer) -> None:
    """Calls and streams take all connections to one server; by default there is one."""
    for count in (3, 1):
        server.peers.clear()
        with connect(server.target, channels=count) as client:
            client.explain_together(images(3))
            for _ in range(3):
                client.explain(b"7")
            assert len(server.peers) == count
            server.peers.clear()
            for _ in range(3):
                client.explain_stream(images(2))
            assert len(server.peers) == count


def test_no_channel_is_refused(connect: Connect) -> None:
    """A client without a connection is an error at once."""
    with pytest.raises(ValueError, match="channels"), connect(channels=0):
        pass


# Deadlines.


def test_the_server_sees_the_time_that_is_left(
    connect: Connect, server: FakeServer, retry: RetryPolicy
) -> None:
    """Each attempt carries the rest of the deadline, not the whole timeout."""
    server.script.extend([server.fail(CODE.RESOURCE_EXHAUSTED, retry_after_s=0.3)] * 2)
    with connect(server.target, retry=retry) as client:
        client.explain(b"7", timeout_s=9)
    first, second, third = server.remaining_s
    # gRPC rounds it up by as much as 0.1 s.
    assert first <= 9.1
    assert second <= first - 0.15
    assert third <= second - 0.15


# Hedging.


def test_a_hedge_wins_against_a_slow_server(
    connect: Connect, server: FakeServer, other: FakeServer
) -> None:
    """The other server gets the second attempt, whose answer counts; the first is cancelled."""
    server.script.append(server.hang)
    with connect([server.target, other.target], timeout_s=20) as client:
        assert client.explain(b"7", hedge_after_s=0.05).top.index == 7
        assert server.cancelled.wait(10)
    assert (len(server.requests), len(other.requests)) == (1, 1)
    assert server.metadata[0]["x-request-id"] == other.metadata[0]["x-request-id"]


def test_a_hedge_takes_another_channel(connect: Connect, server: FakeServer) -> None:
    """With one server the second attempt takes another of its connections."""
    server.script.append(server.hang)
    with connect(server.target, channels=2, timeout_s=20) as client:
        client.explain(b"7", hedge_after_s=0.05)
    assert len(server.peers) == 2


@pytest.mark.parametrize("options", [{}, {"hedge_after_s": 10}])
def test_nothing_is_hedged_without_need(
    connect: Connect, server: FakeServer, other: FakeServer, options: dict[str, float]
) -> None:
    """A slow call is sent once unless hedging is asked for, and then one that is quick enough."""
    server.script.append(lambda _: time.sleep(0.3))
    with connect([server.target, other.target], timeout_s=20) as client:
        client.explain(b"7", **options)
    assert (len(server.requests), len(other.requests)) == (1, 0)


def test_a_hedge_that_fails_does_not_spoil_the_first(
    connect: Connect, server: FakeServer, other: FakeServer
) -> None:
    """An error that another attempt may escape waits for the other answer."""
    other.script.append(other.fail(CODE.INTERNAL))
    server.script.append(lambda _: time.sleep(0.5))
    with connect([server.target, other.target], timeout_s=20) as client:
        assert client.explain(b"7", hedge_after_s=0.05).top.index == 7
    assert len(other.requests) == 1


def test_a_wrong_request_ends_both_attempts(
    connect: Connect, server: FakeServer, other: FakeServer
) -> None:
    """An error that every server would give is raised at once."""
    server.script.append(server.hang)
    other.script.append(other.fail(CODE.INVALID_ARGUMENT, "bad"))
    with connect([server.target, other.target], timeout_s=20) as client:
        with pytest.raises(InvalidRequestError, match="bad"):
            client.explain(b"7", hedge_after_s=0.05)
        assert server.cancelled.wait(10)


@pytest.mark.parametrize(
    ("code", "kind"), [(CODE.RESOURCE_EXHAUSTED, None), (CODE.INTERNAL, ServerError)]
)
def test_two_failures_are_one(
    connect: Connect,
    server: FakeServer,
    other: FakeServer,
    retry: RetryPolicy,
    code: grpc.StatusCode,
    kind: type[GradCamError] | None,
) -> None:
    """If both attempts fail, the call is tried again unless one of the errors is final."""
    hedged = threading.Event()

    def fail_after_the_hedge(context: grpc.ServicerContext) -> None:
        assert hedged.wait(10)
        server.fail(CODE.RESOURCE_EXHAUSTED)(context)

    def fail_as_the_hedge(context: grpc.ServicerContext) -> None:
        hedged.set()
        other.fail(code)(context)

    server.script.append(fail_after_the_hedge)
    other.script.append(fail_as_the_hedge)
    with connect([server.target, other.target], retry=retry, timeout_s=20) as client:
        if kind is None:
            assert client.explain(b"7", hedge_after_s=0.05).top.index == 7
            assert len(server.requests) + len(other.requests) == 3
        else:
            with pytest.raises(kind):
                client.explain(b"7", hedge_after_s=0.05)


def test_a_first_attempt_that_fails_is_retried_not_hedged(
    connect: Connect, server: FakeServer, retry: RetryPolicy
) -> None:
    """Before the hedge is due, a refusal is handled as without hedging."""
    server.script.extend([server.fail(CODE.RESOURCE_EXHAUSTED)] * 9)
    with connect(server.target, retry=retry) as client, pytest.raises(OverloadedError):
        client.explain(b"7", hedge_after_s=10)
    assert len(server.requests) == retry.max_attempts


def test_a_senseless_hedge_is_refused(connect: Connect, server: FakeServer) -> None:
    """Hedging at once would double all work."""
    with connect(server.target) as client, pytest.raises(ValueError, match="hedge_after_s"):
        client.explain(b"7", hedge_after_s=0)
    assert server.requests == []
