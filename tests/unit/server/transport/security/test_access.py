"""The interceptor, in front of services that do nothing."""

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_status import rpc_status

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import InvalidRequestError, LimitError
from gradcam_server.transport.security.access import Access, AccessInterceptor, read_token_file
from gradcam_server.transport.security.caller import Caller, current_caller
from gradcam_server.transport.security.tokens import Token, hash_token, to_toml

ALICE = (("authorization", "Bearer alices"),)
ADMIN = (("authorization", "Bearer admins"),)
ASK = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


parse = health_pb2.HealthCheckRequest.FromString


class Clock:
    """Time that stands still."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    """A server whose calls wait for ``go``, and its reports."""

    def __init__(self, tokens: Path | None, admin: bool = False, **limits: int) -> None:
        config = ServeConfig(token_file=str(tokens) if tokens else None, **limits)  # type: ignore[arg-type]
        self.clock, self.codes, self.rejected = Clock(), Counter[tuple[str, str]](), Counter[str]()
        self.go, self.started, self.admin = asyncio.Event(), 0, admin
        self.callers: list[str] = []
        self.access = Access(
            config,
            lambda name, code: self.codes.update([(name, code)]),
            lambda reason: self.rejected.update([reason]),
            self.clock,
        )

    async def unary(self, _: bytes, __: Any) -> bytes:
        self.started += 1
        self.callers.append(current_caller.get().name)
        await self.go.wait()
        return b"answer"

    async def fail(self, _: bytes, context: Any) -> bytes:
        return bytes(await context.abort(grpc.StatusCode.NOT_FOUND, "nothing"))

    async def crash(self, _: bytes, __: Any) -> bytes:
        raise ZeroDivisionError

    async def stream(self, _: Any, context: Any) -> None:
        self.started += 1
        while await context.read() is not grpc.aio.EOF:
            async with current_caller.get().images:
                await context.write(b"answer")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Any]:
        server = grpc.aio.server(
            interceptors=(AccessInterceptor(self.access, admin=self.admin),),
        )
        handlers: dict[str, Any] = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Crash": grpc.unary_unary_rpc_method_handler(self.crash),
            "Echo": grpc.unary_unary_rpc_method_handler(self.unary, parse),
            "Echoes": grpc.stream_stream_rpc_method_handler(self.stream, parse),
            "Stream": grpc.stream_stream_rpc_method_handler(self.stream),
        }
        handler = grpc.method_handlers_generic_handler("a.B", handlers)
        server.add_generic_rpc_handlers((handler,))
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
        reflection.enable_server_reflection((), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield channel
        finally:
            await server.stop(1)  # a call is counted after it was answered


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(folder: Path, **limits: float) -> Path:
    path = folder / "tokens.toml"
    alice = Token("alice", (hash_token("alices"),), **limits)  # type: ignore[arg-type]
    admin = Token("root", (hash_token("admins"),), admin=True)
    path.write_text(to_toml(alice) + to_toml(admin))
    return path


async def call(channel: Any, metadata: Any = (), method: str = "/a.B/Unary") -> str:
    """Makes a call; returns the name of its code."""
    try:
        await channel.unary_unary(method)(b"x", metadata=metadata, timeout=20)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ((), "there is no token; send the metadata 'authorization: Bearer TOKEN'"),
        ((("authorization", "Bearer wrong"),), "the token is unknown to this server"),
        ((("authorization", "alices"),), "is not a bearer token; send"),
        ((("authorization", "Basic alices"),), "is not a bearer token; send"),
        ((("authorization", "Bearer "),), "is not a bearer token; send"),
        (ALICE + ADMIN, "there are 2 tokens"),
    ],
)
async def test_without_a_known_token_nothing_is_reached(
    tokens: Path, metadata: Any, message: str
) -> None:
    """UNAUTHENTICATED: the message says what to send, and does not quote the token."""
    world = World(tokens)
    world.go.set()
    async with world.serving() as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED") as caught:
            await channel.unary_unary("/a.B/Unary")(b"x", metadata=metadata)
        assert message in (caught.value.details() or "")
        assert "alices" not in (caught.value.details() or "")
        for method in ("/a.B/Fail", "/a.B/Unknown", "/no.Such/Thing"):
            assert await call(channel, metadata, method) == "UNAUTHENTICATED"
    assert world.started == 0
    assert world.codes == {("", "UNAUTHENTICATED"): 4}
    assert world.rejected == {"unauthenticated": 4}


async def test_the_right_token_is_let_in_and_counted_by_name(tokens: Path) -> None:
    """Each code is counted; an error of the service is UNKNOWN; the scheme may be in any case."""
    world = World(tokens)
    world.go.set()
    async with world.serving() as channel:
        assert await call(channel, ALICE) == "OK"
        assert await call(channel, (("authorization", "bearer  alices "),)) == "OK"
        assert await call(channel, ADMIN) == "OK"
        assert await call(channel, ALICE, "/a.B/Fail") == "NOT_FOUND"
        assert await call(channel, ALICE, "/a.B/Crash") == "UNKNOWN"
        assert await call(channel, ALICE, "/a.B/Unknown") == "UNIMPLEMENTED"
    assert world.callers == ["alice", "alice", "root"]
    assert world.codes == {
        ("alice", "OK"): 2,
        ("root", "OK"): 1,
        ("alice", "NOT_FOUND"): 1,
        ("alice", "UNKNOWN"): 1,
        ("alice", "UNIMPLEMENTED"): 1,
    }


async def test_health_needs_no_token_and_reflection_does(tokens: Path) -> None:
    """Probes have no token; the list of methods is for callers."""
    world = World(tokens)
    async with world.serving() as channel:
        check: Any = health_pb2_grpc.HealthStub(channel)
        assert (await check.Check(health_pb2.HealthCheckRequest())).status
        ask = channel.stream_stream(REFLECTION)
        with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
            [answer async for answer in ask(iter([ASK]))]
        assert [answer async for answer in ask(iter([ASK]), metadata=ALICE)]


async def test_without_a_token_file_everyone_is_let_in() -> None:
    """A token that is not needed is ignored."""
    world = World(None)
    world.go.set()
    async with world.serving() as channel:
        assert [await call(channel, metadata) for metadata in ((), ALICE)] == ["OK", "OK"]
    assert world.codes == {("", "OK"): 2}


async def test_administration_needs_an_admins_token(tokens: Path) -> None:
    """Other tokens get PERMISSION_DENIED, and calls without a token UNAUTHENTICATED."""
    world = World(tokens, admin=True)
    world.go.set()
    async with world.serving() as channel:
        codes = [await call(channel, metadata) for metadata in ((), ALICE, ADMIN)]
    assert codes == ["UNAUTHENTICATED", "PERMISSION_DENIED", "OK"]
    assert world.started == 1
    assert world.codes == {
        ("", "UNAUTHENTICATED"): 1,
        ("alice", "PERMISSION_DENIED"): 1,
        ("root", "OK"): 1,
    }
    assert world.rejected == {"unauthenticated": 1, "forbidden": 1}


async def test_calls_at_once_are_limited_exactly(tmp_path: Path) -> None:
    """Three of ten calls are admitted, the others get RetryInfo; another caller is not affected."""
    world = World(write(tmp_path, max_concurrent=3))
    async with world.serving() as channel:
        first = [asyncio.create_task(call(channel, ALICE)) for _ in range(10)]
        await until(lambda: world.started == 3 and world.codes.total() == 7)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.B/Unary")(b"x", metadata=ALICE)
        assert caught.value.details() == "alice may have 3 calls at once; wait for an answer"
        assert retry_after_s(caught.value) > 0
        world.go.set()
        assert await call(channel, ADMIN) == "OK"
        assert Counter(await asyncio.gather(*first)) == {"OK": 3, "RESOURCE_EXHAUSTED": 7}
        assert await call(channel, ALICE) == "OK"
    assert world.rejected == {"limited": 8}


async def test_a_cancelled_call_frees_its_slot(tmp_path: Path) -> None:
    """Cancelled calls do not use up the limit."""
    world = World(write(tmp_path, max_concurrent=1))
    async with world.serving() as channel:

        def has_started(count: int) -> bool:
            return world.started == count

        def has_ended(count: int) -> bool:
            return world.codes["alice", "CANCELLED"] == count

        for count in range(1, 4):
            pending = channel.unary_unary("/a.B/Unary")(b"x", metadata=ALICE)
            await until(partial(has_started, count))
            pending.cancel()
            await until(partial(has_ended, count))
        world.go.set()
        assert await call(channel, ALICE) == "OK"


async def test_the_rate_is_limited_exactly(tmp_path: Path) -> None:
    """Five calls at once, then none until the time of RetryInfo, then one."""
    world = World(write(tmp_path, max_requests_per_s=5))
    world.go.set()
    async with world.serving() as channel:
        codes = Counter([await call(channel, ALICE) for _ in range(9)])
        assert codes == {"OK": 5, "RESOURCE_EXHAUSTED": 4}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.B/Unary")(b"x", metadata=ALICE)
        assert caught.value.details() == "alice may make 5 requests per second"
        assert retry_after_s(caught.value) == pytest.approx(0.2)
        world.clock.now += 0.2
        assert [await call(channel, ALICE) for _ in range(2)] == ["OK", "RESOURCE_EXHAUSTED"]
        assert await call(channel, ADMIN) == "OK"


async def test_changed_limits_count_at_once(tmp_path: Path) -> None:
    """A call in work stays counted when the file changes."""
    path = write(tmp_path, max_concurrent=1)
    world = World(path)
    async with world.serving() as channel:
        first = asyncio.create_task(call(channel, ALICE))
        await until(lambda: world.started == 1)
        write(tmp_path, max_concurrent=2)
        second = asyncio.create_task(call(channel, ALICE))
        await until(lambda: world.started == 2)
        assert await call(channel, ALICE) == "RESOURCE_EXHAUSTED"
        world.go.set()
        assert list(await asyncio.gather(first, second)) == ["OK", "OK"]


async def test_streams_are_limited_for_all_callers_together(tokens: Path) -> None:
    """Unary calls are still admitted, and so is a stream after another stream ends."""
    world = World(tokens, max_streams=2)
    world.go.set()
    async with world.serving() as channel:
        stream = channel.stream_stream("/a.B/Stream")
        open_ones = [stream(metadata=metadata) for metadata in (ALICE, ADMIN)]
        for one in open_ones:
            await one.write(b"x")
            assert await one.read() == b"answer"
        refused = stream(metadata=ALICE)
        assert (await refused.code()).name == "RESOURCE_EXHAUSTED"
        assert "2 streams are open" in await refused.details()
        assert await call(channel, ALICE) == "OK"
        await open_ones[0].done_writing()
        assert (await open_ones[0].code()).name == "OK"
        again = stream(metadata=ALICE)
        await again.write(b"x")
        assert await again.read() == b"answer"


async def test_settings_of_a_reload_count(tokens: Path) -> None:
    """After a reload with a token file, calls need a token."""
    world = World(None)
    world.go.set()
    async with world.serving() as channel:
        assert await call(channel) == "OK"
        config = ServeConfig(token_file=str(tokens))
        world.access.configure(config, read_token_file(config))
        assert [await call(channel), await call(channel, ALICE)] == ["UNAUTHENTICATED", "OK"]


async def test_images_of_streams_share_their_callers_slots() -> None:
    """Two images at once, in any number of streams; the third waits."""
    caller, done = Caller("a"), asyncio.Event()
    caller.allow(Token("a", (), max_concurrent=2))
    running = 0

    async def image() -> None:
        nonlocal running
        async with caller.images:
            running += 1
            await done.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(image())
        await asyncio.sleep(0.05)
        assert running == 2
        done.set()
    assert running == 5


def test_images_of_streams_wait_for_the_rate() -> None:
    """A stream waits where a unary call is refused, also for a message with several images."""
    caller = Caller("a", Clock())
    assert caller.reserve(5) == 0
    caller.allow(Token("a", (), max_requests_per_s=2))
    assert [caller.reserve() for _ in range(4)] == pytest.approx([0, 0, 0.5, 1])
    assert caller.reserve(3) == pytest.approx(2.5)


def test_a_call_of_many_images_counts_as_many() -> None:
    """A refused call costs nothing; more images than a second allows delay later calls."""
    clock = Clock()
    caller = Caller("a", clock)
    caller.allow(Token("a", (), max_requests_per_s=4))

    def ask(images: int) -> float:
        try:
            caller.begin_call()
        except LimitError as error:
            return error.retry_after_s
        try:
            caller.count(images)
        except LimitError as error:
            return error.retry_after_s
        finally:
            caller.end_call()
        return 0

    assert [ask(3), ask(2), ask(2), ask(1)] == [0, 0.25, 0.25, 0]
    assert [ask(1), ask(10)] == [0.25, 0.25]
    clock.now += 0.5
    assert ask(10) == 0.5
    clock.now += 0.5
    assert [ask(10), ask(1)] == [0, 1.75]
    clock.now += 1.75
    assert [ask(1), ask(1)] == [0, 0.25]


async def test_what_is_no_message_is_refused_without_a_traceback(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Garbage is INVALID_ARGUMENT, in a unary call, in a stream, and to health without a token."""
    world = World(tokens)
    async with world.serving() as channel:
        methods = ("/a.B/Echo", "/a.B/Echoes", REFLECTION)
        codes = [await call(channel, ALICE, method) for method in methods]
        assert codes[0] == "INVALID_ARGUMENT"
        assert await call(channel, method="/grpc.health.v1.Health/Check") == "INVALID_ARGUMENT"
        assert set(codes) == {"INVALID_ARGUMENT"}
    assert "Traceback" not in caplog.text
    assert world.codes["alice", "INVALID_ARGUMENT"] == 3


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - of the server, which tells nobody
        await asyncio.sleep(0.01)


def retry_after_s(error: Any) -> float:
    status = rpc_status.from_call(error)
    assert status
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    return float(retry.retry_delay.ToMilliseconds() / 1000)


def test_several_front_ends_divide_what_a_token_allows() -> None:
    """Each of three front ends allows a third of the rate and of the calls, but one at least."""
    clock = Clock()
    caller = Caller("a", clock)
    caller.allow(Token("a", (), max_requests_per_s=9, max_concurrent=7), front_ends=3)
    assert caller._rate is not None
    assert caller._rate.per_s == 3
    assert caller._calls.limit == 2
    caller.allow(Token("a", (), max_concurrent=2), front_ends=3)
    assert caller._calls.limit == 1


@pytest.mark.parametrize("how", ["abort", "domain error", "nested error"])
async def test_a_refused_message_does_not_wait_for_the_garbage_collector(how: str) -> None:
    """The message is freed when the call ends: refused large messages do not pile up."""

    class Message:
        """A parsed message."""

        def __init__(self, data: bytes) -> None:
            self.data = data

    received: list[weakref.ref[Message]] = []

    def parse_own(data: bytes) -> Message:
        message = Message(data)
        received.append(weakref.ref(message))
        return message

    async def refuse(message: Message, context: Any) -> bytes:
        held = [message]
        if how == "domain error":
            raise InvalidRequestError("field", f"{len(held)} is wrong")
        if how == "nested error":
            try:
                int("no number")
            except ValueError as error:
                raise LimitError("too much", 1) from error
        return bytes(await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room"))

    access = Access(ServeConfig())
    server = grpc.aio.server(interceptors=(AccessInterceptor(access),))
    handler: Any = grpc.unary_unary_rpc_method_handler(refuse, parse_own)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("a.B", {"Refuse": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.collect()
    gc.disable()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(3):
                assert await call(channel, method="/a.B/Refuse") != "OK"
        async with asyncio.timeout(10):
            await until(lambda: all(one() is None for one in received))
        assert len(received) == 3
    finally:
        gc.enable()
        await server.stop(1)


@pytest.mark.parametrize("method", ["/a.B/Unary", "/a.B/Unknown", "/a.B/Stream"])
async def test_refused_calls_are_not_read(tmp_path: Path, method: str) -> None:
    """Clients get the status before they have sent their message, for each kind of refusal."""
    world = World(write(tmp_path, max_requests_per_s=1))
    world.go.set()
    async with world.serving() as channel:
        assert await call(channel, ALICE) == "OK"
        refused = channel.stream_unary(method)(metadata=ALICE)  # it never sends one
        async with asyncio.timeout(20):
            assert (await refused.code()).name == "RESOURCE_EXHAUSTED"
    assert world.started == 1


async def test_a_call_without_a_message_is_refused() -> None:
    """A client of another library may end its side without a message."""
    world = World(None)
    async with world.serving() as channel:
        ended = channel.stream_unary("/a.B/Unary")(iter([]))
        assert (await ended.code()).name == "INVALID_ARGUMENT"
        assert await ended.details() == "the call has no message"
    assert world.started == 0


def test_a_caller_is_the_holder_of_a_token_or_else_a_connection(tokens: Path) -> None:
    """Authentication returns the caller whose share the call uses."""
    with_tokens = Access(ServeConfig(token_file=str(tokens)))
    assert with_tokens.authenticate(lambda: ALICE, "ipv4:1").key == "alice"
    without = Access(ServeConfig())
    assert [without.authenticate(lambda: None, peer).key for peer in ("ipv4:1", "ipv4:2")] == [
        "ipv4:1",
        "ipv4:2",
    ]
