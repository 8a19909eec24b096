"""When an answer is really sent, and what ends a call whose client does not take it.

gRPC runs interceptor, handler and the sending of a unary answer in one task, which ends when the
answer was handed to the transport: when the client's HTTP/2 window has taken nearly all of it.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from functools import partial

import grpc

logger = logging.getLogger(__name__)

# The coroutine of gRPC that awaits the end of a call, and holds the call for it.
_OWNER = "_schedule_rpc_coro"


def when_sent(callback: Callable[[], None]) -> None:
    """Calls back once the current call's answer was sent, or the call has ended otherwise."""
    # A callback of gRPC's context would be a cycle of references, and keep the call's memory.
    current_task().add_done_callback(lambda _: callback())


def limit_sending(seconds: float) -> None:
    """Gives the current unary call, whose answer is ready, so many seconds to send it."""
    task = current_task()
    timer = asyncio.get_running_loop().call_later(seconds, partial(cut_off_late, task, seconds))
    task.add_done_callback(lambda _: timer.cancel())


def cut_off(task: "asyncio.Task[object]") -> None:
    """Ends a call and frees what gRPC holds of its answers: RST_STREAM, CANCELLED at the client.

    ``grpc.aio`` has no call for it. A call is cancelled when nothing refers to it any more: the
    task that runs its handler, and the task that awaits its end.

    Args:
        task: Runs the call's handler.
    """
    task.cancel()
    for other in asyncio.all_tasks():
        coroutine = other.get_coro()
        if getattr(coroutine, "__name__", "") == _OWNER and any(
            task in gc.get_referents(part) for part in gc.get_referents(coroutine)
        ):
            other.cancel()
            return


def forget_frames(error: BaseException) -> None:
    """Drops the frames that an error came through, and those of the errors that it came from.

    Futures, tasks and gRPC's calls refer to errors, and frames to these: messages and images would
    stay in memory until the next garbage collection, which objects call for, not bytes.
    """
    errors: list[BaseException | None] = [error]
    while errors:
        one = errors.pop()
        if one is None or not any((one.__traceback__, one.__context__, one.__cause__)):
            continue  # seen, or never raised
        errors += one.__context__, one.__cause__
        if isinstance(one, BaseExceptionGroup):
            errors += one.exceptions
        one.__traceback__ = one.__context__ = one.__cause__ = None


def cut_off_late(task: "asyncio.Task[object]", seconds: float) -> None:
    """Ends a call whose answer was not taken in time, and logs that."""
    logger.warning("An answer was not taken for %g s; its call is cut off", seconds)
    cut_off(task)


def current_task() -> "asyncio.Task[object]":
    """Returns the task that runs the handler of the current call."""
    task = asyncio.current_task()
    assert task is not None  # handlers run in one
    return task


def hide_lost_clients() -> None:
    """Keeps gRPC from logging an error with a traceback when a client leaves before its answer."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_lost_client)


def _is_no_lost_client(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, grpc.aio.InternalError):
        return True
    logger.debug("The client of a call is gone: %r", error)
    return False
