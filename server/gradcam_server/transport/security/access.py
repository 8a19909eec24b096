"""Lets calls in: the interceptor that all of them pass, except those of health."""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import (
    ForbiddenError,
    InvalidRequestError,
    LimitError,
    UnauthenticatedError,
)
from gradcam_server.transport.security.caller import Caller, current_caller
from gradcam_server.transport.security.limits import Slots
from gradcam_server.transport.security.tokens import Token, TokenFile
from gradcam_server.transport.sending import forget_frames, limit_sending, when_sent
from gradcam_server.transport.status import abort, to_status

logger = logging.getLogger(__name__)

OnTokenRequest: TypeAlias = Callable[[str, str], None]
"""Told of each call's end: the token's name, empty without one, and the gRPC code's name."""

OnRejected: TypeAlias = Callable[[Literal["unauthenticated", "forbidden", "limited"]], None]
"""Told of each call that was not let in."""

_HEALTH = "/grpc.health.v1.Health/"
_HOW = "send the metadata 'authorization: Bearer TOKEN'"
_RETRY_STREAM_S = 1.0

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
_Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
_Admitted: TypeAlias = Callable[[bool, Any], AbstractContextManager[None]]
"""Given whether a call's requests are a stream, and its context."""


class Access:
    """The tokens, and what their holders use.

    Args:
        config: The settings.
        on_token_request: See ``OnTokenRequest``.
        on_rejected: Told why a call was not let in.
        clock: Time in seconds.

    Raises:
        StartupError: The token file cannot be used.
    """

    def __init__(
        self,
        config: ServeConfig,
        on_token_request: OnTokenRequest = lambda *_: None,
        on_rejected: OnRejected = lambda _: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.on_token_request, self.on_rejected = on_token_request, on_rejected
        self._clock = clock
        self._callers: dict[str, Caller] = {}
        self._everyone = Caller()
        self._streams = Slots(None)
        self.max_send_s = config.max_send_s
        self.configure(config, read_token_file(config))

    def configure(self, config: ServeConfig, tokens: TokenFile | None) -> None:
        """Goes by these settings and tokens from now on."""
        self._tokens, self._front_ends = tokens, config.frontends
        self._streams.limit = config.max_streams

    def authenticate(self, metadata: _Metadata) -> Caller:
        """Finds out who calls.

        Raises:
            UnauthenticatedError: Without a token, or with an unknown one.
        """
        if self._tokens is None:
            return self._everyone
        token = self._tokens.find(_bearer(metadata))
        if token is None:
            raise UnauthenticatedError("the token is not known to this server, or not any more")
        return self._caller(token)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Lets a stream in, and counts it until it is done.

        Raises:
            LimitError: There are too many, of all callers together.
        """
        if not self._streams.take():
            raise LimitError(
                f"{self._streams.limit} streams are open, which is this server's limit",
                _RETRY_STREAM_S,
            )
        try:
            yield
        finally:
            self._streams.release()

    def _caller(self, token: Token) -> Caller:
        caller = self._callers.get(token.name)
        if caller is None:
            caller = self._callers[token.name] = Caller(token.name, self._clock)
        caller.allow(token, self._front_ends)
        return caller


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Answers calls that may not come in, before their message is read.

    Args:
        access: Who may.
        admin: Whether all calls need a token that may administer.
    """

    def __init__(self, access: Access, *, admin: bool = False) -> None:
        self._access, self._admin = access, admin
        self._handlers: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Wraps the handler of a call."""
        if details.method.startswith(_HEALTH):
            return await self._wrapped(continuation, details, lambda *_: nullcontext())
        try:
            caller = self._access.authenticate(details.invocation_metadata)
        except UnauthenticatedError as error:
            return self._refusal("", "unauthenticated", error)
        try:
            if self._admin:
                caller.check_admin()
        except ForbiddenError as error:
            return self._refusal(caller.name, "forbidden", error)
        current_caller.set(caller)
        return await self._wrapped(continuation, details, self._admitted)

    async def _wrapped(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        details: grpc.HandlerCallDetails,
        admitted: _Admitted,
    ) -> _Handler:
        """Wraps a handler, each method's once."""
        if (wrapped := self._handlers.get(details.method)) is None:
            wrapped = _wrap(await continuation(details), admitted, self._access.max_send_s)
            if wrapped is not None:  # names that there are not would be kept for ever
                self._handlers[details.method] = wrapped
        return wrapped

    def _refusal(
        self, name: str, reason: Literal["unauthenticated", "forbidden"], error: Exception
    ) -> _Handler:
        async def refuse(_: Any, context: Any) -> None:
            with self._reporting(name, context):
                self._access.on_rejected(reason)
                await abort(context, to_status(error))

        # As a stream, whatever it is: then its message, however large, is never read.
        return grpc.stream_stream_rpc_method_handler(refuse)

    @contextmanager
    def _admitted(self, streaming: bool, context: Any) -> Iterator[None]:
        caller = current_caller.get()  # gRPC runs interceptor and handler in one task
        if not caller.name:
            caller = Caller(connection=context.peer())
            current_caller.set(caller)
        with self._reporting(caller.name, context):
            with ExitStack() as counted:
                counted.enter_context(caller.call())
                if streaming:
                    counted.enter_context(self._access.stream())
                when_sent(counted.pop_all().close)
            yield

    @contextmanager
    def _reporting(self, name: str, context: Any) -> Iterator[None]:
        code = "CANCELLED"
        try:
            yield
            code = _code(context, "OK")
        except LimitError:
            code = "RESOURCE_EXHAUSTED"
            self._access.on_rejected("limited")
            raise
        except InvalidRequestError:
            code = "INVALID_ARGUMENT"
            raise
        except Exception:
            code = _code(context, "UNKNOWN")
            raise
        finally:
            self._access.on_token_request(name, code)


def _wrap(handler: Any, admitted: _Admitted, max_send_s: float) -> _Handler:
    """Returns a handler that answers within a context, in time, and refuses what is no message."""
    if handler is None:
        return None
    streaming = handler.request_streaming
    kind = f"{_arity(streaming)}_{_arity(handler.response_streaming)}"
    behaviour = getattr(handler, kind)
    parse = _parser(handler.request_deserializer)
    # gRPC would log a traceback and answer UNKNOWN if a unary message could not be parsed.
    read = (lambda messages: messages) if streaming else parse

    write = handler.response_serializer or bytes

    async def respond(request: Any, context: Any) -> Any:
        try:
            with admitted(streaming, context):
                response = await behaviour(read(request), context)
        except (LimitError, InvalidRequestError) as error:
            await abort(context, to_status(error))
            return None
        if handler.response_streaming:
            return None
        limit_sending(max_send_s)
        # From here on only its bytes are held.
        return write(response)

    async def answer(request: Any, context: Any) -> Any:
        responding = respond(request, context)
        del request
        try:
            return await responding
        except grpc.aio.AbortError as error:
            forget_frames(error)
            raise

    async def answer_each(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            with admitted(streaming, context):
                async for message in behaviour(read(request), context):
                    yield message
        except (LimitError, InvalidRequestError) as error:
            await abort(context, to_status(error))

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(
        answer_each if inspect.isasyncgenfunction(behaviour) else answer,
        request_deserializer=parse if streaming else None,
        response_serializer=handler.response_serializer if handler.response_streaming else None,
    )


def _parser(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def parse_or_refuse(data: bytes) -> Any:
        try:
            return data if parse is None else parse(data)
        except DecodeError:
            raise InvalidRequestError(
                "", f"the {len(data)} bytes are not this method's message"
            ) from None

    return parse_or_refuse


def read_token_file(config: ServeConfig) -> TokenFile | None:
    """Reads the token file, if there is one.

    Raises:
        StartupError: It cannot be used.
    """
    return TokenFile(Path(config.token_file)) if config.token_file is not None else None


def _bearer(metadata: _Metadata) -> str:
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        raise UnauthenticatedError(f"there is no token; {_HOW}")
    if len(values) > 1:
        raise UnauthenticatedError(f"there are {len(values)} tokens; {_HOW} once")
    scheme, _, token = str(values[0]).partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError(f"the authorization is no bearer token; {_HOW}")
    return token.strip()


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _code(context: Any, otherwise: str) -> str:
    code = context.code()
    if code in (None, 0):
        return otherwise
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((one.name for one in grpc.StatusCode if one.value[0] == code), otherwise)
