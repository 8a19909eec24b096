"""Event loops, processes and the closing of clients."""

import asyncio
import copy
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import grpc
import pytest

from gradcam_client import AsyncClient, CallCancelledError, Client
from gradcam_client.channel_pool import ChannelPool
from unit.client.fake_server import FakeServer

NOWHERE = "127.0.0.1:1"
# Forks a process that has a client, and prints the error of its use in the child.
FORK = """
import os, sys
from gradcam_client import Client
client = Client("127.0.0.1:1")
if os.fork() == 0:
    try:
        {use}
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.wait()
"""


def resend(client: Any) -> Any:
    return pickle.loads(pickle.dumps(client))


# Event loops.


@pytest.mark.filterwarnings("error")
def test_an_asynchronous_client_may_be_made_outside_a_loop(server: FakeServer) -> None:
    """At the top of a module for instance: it connects in the loop that uses it."""
    client = AsyncClient(server.target)
    outcomes = client.explain_stream([b"1", b"2"])

    async def use() -> list[int]:
        found = [(await client.explain(b"7")).top.index]
        found += [one.unwrap().top.index async for one in outcomes]
        await client.close()
        return found

    assert asyncio.run(use()) == [7, 1, 2]


@pytest.mark.parametrize("loop_is_closed", [True, False])
def test_use_in_a_second_loop_is_an_error(server: FakeServer, loop_is_closed: bool) -> None:
    """Calls, streams and closing say that each loop needs its own client."""
    client = AsyncClient(server.target)

    async def collect() -> list[Any]:
        return [one async for one in client.explain_stream([b"1"])]

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(client.explain(b"7"))
        if loop_is_closed:
            first.run(client._pool.all[0].grpc_channel.close())
            first.close()
        for use in (lambda: client.explain(b"7"), client.health, collect, client.close):
            with pytest.raises(RuntimeError, match="another event loop; make one in each loop"):
                second.run(use())
        if not loop_is_closed:
            assert first.run(client.explain(b"8")).top.index == 8
            first.run(client.close())


def test_an_unused_asynchronous_client_is_closed_anywhere() -> None:
    """There is nothing to close, and closing twice does no harm."""
    client = AsyncClient(NOWHERE)
    asyncio.run(client.close())
    asyncio.run(client.close())


# Processes.


@pytest.mark.parametrize("send", [copy.copy, copy.deepcopy, resend])
def test_a_pickled_client_opens_anew(server: FakeServer, send: Callable[[Any], Any]) -> None:
    """The copy has the arguments and connections of its own; closing one leaves the other open."""
    token = "secret"
    client = Client(server.target, token=token, timeout_s=7, channels=2)
    with send(client) as sent:
        client.close()
        assert sent.explain(b"7").top.index == 7
        assert (sent._timeout_s, len(sent._pool.all)) == (7, 2)
    assert dict(server.metadata[-1])["authorization"] == f"Bearer {token}"


def test_a_pickled_asynchronous_client_opens_anew(server: FakeServer) -> None:
    """It connects in the event loop that uses it, even if the other is connected elsewhere."""
    client = AsyncClient(server.target)

    async def use(one: AsyncClient) -> int:
        async with one:
            return (await one.explain(b"7")).top.index

    sent = pickle.loads(pickle.dumps(client))
    assert [asyncio.run(use(one)) for one in (client, sent)] == [7, 7]


def test_a_process_pool_takes_the_methods_of_a_client(server: FakeServer) -> None:
    """``pool.map(client.explain, images)`` works, each process with connections of its own."""
    spawn = multiprocessing.get_context("spawn")
    with Client(server.target) as client, ProcessPoolExecutor(1, spawn) as pool:
        assert [one.top.index for one in pool.map(client.explain, [b"1", b"2"])] == [1, 2]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (lambda: {"token": lambda: "secret"}, "its token cannot"),
        (lambda: {"credentials": grpc.ssl_channel_credentials()}, "credentials .* did not make"),
        (lambda: {"channel": grpc.insecure_channel(NOWHERE)}, "a channel belongs to one process"),
    ],
    ids=["token", "credentials", "channel"],
)
@pytest.mark.parametrize(
    "send",
    [
        pickle.dumps,
        copy.copy,
        lambda client: pickle.dumps(client.explain),
        lambda client: multiprocessing.get_context("spawn").Process(args=(client,)).start(),
    ],
    ids=["pickle", "copy", "method", "spawn"],
)
def test_an_argument_that_cannot_be_sent_is_named(
    kind: type[Any],
    arguments: Callable[[], dict[str, Any]],
    expected: str,
    send: Callable[[Any], object],
) -> None:
    """The error names the argument, and says that each process can make its own client."""
    client = kind(NOWHERE, **arguments())
    with pytest.raises(TypeError, match=f"{kind.__name__}.*{expected}.*client in each process"):
        send(client)


@pytest.mark.parametrize(
    "use",
    ["client.explain(b'7')", "client.health()", "list(client.explain_stream([b'7']))"],
)
def test_a_client_is_not_used_after_a_fork(use: str) -> None:
    """The error comes at once: gRPC would hang, or raise an unclear error."""
    command = [sys.executable, "-c", FORK.format(use=use)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.startswith("RuntimeError this Client is connected in the process that")
    assert "make one in each process, after the fork" in ended.stdout


# After closing.


@pytest.mark.parametrize(
    "use",
    [
        lambda client: client.explain(b"7"),
        lambda client: client.explain(b"7", hedge_after_s=1),
        lambda client: client.health(),
        lambda client: client.list_models(),
        lambda client: list(client.explain_stream([b"7"])),
    ],
    ids=["explain", "hedged", "health", "models", "stream"],
)
def test_a_closed_client_says_so(server: FakeServer, use: Callable[[Client], object]) -> None:
    """Every call of a closed client raises CallCancelledError."""
    client = Client(server.target)
    client.explain(b"7")
    client.close()
    client.close()
    with pytest.raises(CallCancelledError, match="the client is closed; make another one"):
        use(client)


async def test_a_closed_asynchronous_client_says_so(server: FakeServer) -> None:
    """Every call of it raises CallCancelledError, whether the client was used before or not."""
    for is_used in (True, False):
        client = AsyncClient(server.target)
        if is_used:
            await client.explain(b"7")
        await client.close()
        with pytest.raises(CallCancelledError, match="the client is closed"):
            await client.explain(b"7")
        with pytest.raises(CallCancelledError, match="the client is closed"):
            await anext(client.explain_stream([b"7"]))
        with pytest.raises(CallCancelledError, match="the client is closed"):
            await client.health()


@pytest.mark.parametrize("method", ["explain", "health"])
def test_a_client_that_is_closed_just_then_says_so(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Closing a client between acquiring a channel and calling raises the same error."""
    client = Client(server.target)
    acquire = ChannelPool.acquire

    def acquire_and_close(*arguments: Any) -> Any:
        channel = acquire(*arguments)
        client.close()
        return channel

    monkeypatch.setattr(ChannelPool, "acquire", acquire_and_close)
    with pytest.raises(CallCancelledError, match="the client is closed"):
        getattr(client, method)(*([b"7"] if method == "explain" else []))
