"""Answers that are read, read late or never read."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.pipeline.ledger import Ledger
from gradcam_server.telemetry import tracing
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.transport import sending
from gradcam_server.transport.calls import Calls
from gradcam_server.transport.lifecycle import Lifecycle
from gradcam_server.transport.security.access import Access, AccessInterceptor
from gradcam_server.transport.security.tokens import Token, hash_token, to_toml
from gradcam_server.transport.sending import SendLimit, hide_lost_clients, when_sent
from gradcam_server.transport.streams import Writer
from support.unread import UnreadCalls

ANSWER = bytes(1 << 20)
ALICE = (("authorization", "Bearer alices"),)
UNARY, STREAM = "/a.B/Unary", "/a.B/Stream"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(to_toml(Token("alice", (hash_token("alices"),))))
    return path


class World:
    """A server with answers of 1 MiB, and its counts."""

    def __init__(self, tokens: Path, max_send_s: float = 60) -> None:
        config = ServeConfig(max_send_s=max_send_s, token_file=str(tokens))
        self.access = Access(config)
        # One caller for all connections.
        self.caller = self.access.authenticate(lambda: ALICE, "")
        self.lifecycle, self.ledger = Lifecycle(), Ledger()
        self.lifecycle.serve()
        self.calls = Calls(
            self.lifecycle, Metrics(), tracing.NO_TRACER, self.ledger, config.max_send_s
        )
        self.answered = 0

    async def unary(self, _: bytes, context: Any) -> bytes:
        async with self.calls.answering(context, "a.B/Unary"):
            claim = self.calls.claim(context)
            when_sent(claim.release)
            claim.receive(len(ANSWER))
            self.answered += 1
            return ANSWER

    async def stream(self, _: Any, context: Any) -> None:
        async with self.calls.answering(context, "a.B/Stream"):
            write = Writer(context, self.calls.max_send_s)
            while await context.read() is not grpc.aio.EOF:
                self.answered += 1
                await write(ANSWER)

    @property
    def in_work(self) -> tuple[int, int, int, int]:
        """Calls in work, of the caller, streams, and bytes held."""
        calls, streams = self.caller._calls.taken, self.access._streams.taken
        return self.lifecycle.in_work, calls, streams, self.ledger.total

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        hide_lost_clients()
        server = grpc.aio.server(interceptors=(AccessInterceptor(self.access),))
        handlers: dict[str, Any] = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Stream": grpc.stream_stream_rpc_method_handler(self.stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(1)


def connect(address: str) -> Any:
    return grpc.aio.insecure_channel(address)


def unread_calls(address: str, path: str) -> UnreadCalls:
    return UnreadCalls(address, path, [b"x"] * 3, dict(ALICE))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - of the server, which tells nobody
            await asyncio.sleep(0.01)


async def test_an_answer_that_was_taken_is_counted_no_more(tokens: Path) -> None:
    """All counts are 0: of the server, of the caller, and of bytes."""
    world = World(tokens)
    async with world.serving() as address, connect(address) as channel:
        for _ in range(3):
            assert await channel.unary_unary(UNARY)(b"x", metadata=ALICE) == ANSWER
        assert [
            one async for one in channel.stream_stream(STREAM)(iter([b"x"]), metadata=ALICE)
        ] == [ANSWER]
        await until(lambda: world.in_work == (0, 0, 0, 0))


@pytest.mark.parametrize("how", ["cancel", "close", "reset"])
async def test_an_answer_that_waits_is_counted_until_its_client_leaves(
    tokens: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However it leaves, all counts go back to 0, and no error is logged."""
    world = World(tokens)
    async with world.serving() as address:
        clients = [unread_calls(address, path) for path in (UNARY, STREAM) * 4]
        await until(lambda: world.answered == 24)
        await asyncio.sleep(0.1)
        assert world.in_work == (24, 24, 12, 12 * len(ANSWER))
        for client in clients:
            if how == "cancel":
                client.cancel()
            else:
                client.leave(reset=how == "reset")
        await until(lambda: world.in_work == (0, 0, 0, 0))
        for client in clients:
            client.leave()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", [UNARY, STREAM])
async def test_a_call_whose_answer_is_not_taken_in_time_is_cut_off(
    tokens: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client gets RST_STREAM; other calls of the connection go on; the log has a warning."""
    world = World(tokens, max_send_s=0.3)
    async with world.serving() as address, connect(address) as channel:
        unread = unread_calls(address, path)
        await until(lambda: world.answered == 3)
        assert await channel.unary_unary(UNARY)(b"x", metadata=ALICE) == ANSWER
        await until(lambda: world.in_work == (0, 0, 0, 0))
        assert await asyncio.to_thread(unread.resets) == 3
        assert await channel.unary_unary(UNARY)(b"x", metadata=ALICE) == ANSWER
        unread.leave()
    assert "was not taken for 0.3 s" in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_fault_of_ours_is_logged_as_before(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other errors that gRPC logs are not hidden."""

    class Failing(World):
        async def unary(self, _: bytes, __: Any) -> bytes:
            raise ZeroDivisionError

    world = Failing(tokens)
    async with world.serving() as address, connect(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(UNARY)(b"x", metadata=ALICE)
    assert "ZeroDivisionError" in caplog.text


async def test_each_answer_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are late are cut off, each once, and those that are sent in time are not."""
    cut_off: list[str] = []

    def note(task: "asyncio.Task[object]", _: float) -> None:
        cut_off.append(task.get_name())
        task.cancel()

    monkeypatch.setattr(sending, "cut_off_late", note)
    limit = SendLimit(0.1)

    async def send(seconds: float) -> None:
        limit.begin()
        await asyncio.sleep(seconds)

    tasks = []
    for name, seconds in (("first", 30.0), ("quick", 0.0), ("second", 30.0)):
        tasks.append(asyncio.create_task(send(seconds), name=name))
        await asyncio.sleep(0.02)
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert cut_off == ["first", "second"]
    after_a_pause = asyncio.create_task(send(30), name="after a pause")
    await asyncio.wait({after_a_pause}, timeout=10)
    assert cut_off == ["first", "second", "after a pause"]


async def test_all_callbacks_of_a_call_run_in_their_order_when_it_has_ended() -> None:
    """Whether the call returns or is cancelled, and never those of another call."""
    ended: list[str] = []

    async def call(name: str, seconds: float) -> None:
        when_sent(lambda: ended.append(f"{name} 1"))
        when_sent(lambda: ended.append(f"{name} 2"))
        await asyncio.sleep(seconds)

    returned, cancelled = asyncio.create_task(call("a", 0)), asyncio.create_task(call("b", 30))
    await returned
    await asyncio.sleep(0)
    assert ended == ["a 1", "a 2"]
    cancelled.cancel()
    await asyncio.wait({cancelled})
    await asyncio.sleep(0)
    assert ended == ["a 1", "a 2", "b 1", "b 2"]
