"""Finds out when an answer is sent, and ends calls whose clients do not read their answers.

gRPC runs interceptor, handler and the sending of a unary answer in one task. The task ends when the
answer is handed to the transport: when the client's HTTP/2 window has taken nearly all of it.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from functools import partial

import grpc

logger = logging.getLogger(__name__)

# The coroutine of gRPC that awaits the end of a call, and refers to the call until then.
_OWNER = "_schedule_rpc_coro"


# What is called back for each call in work. The event loop takes longer to run a callback of
# a task than most callbacks take, so each task has one for all.
_at_end: "dict[asyncio.Task[object], list[Callable[[], object]]]" = {}


def when_sent(callback: Callable[[], object]) -> None:
    """Calls back once the current call's answer is sent, or the call has ended otherwise."""
    task = current_task()
    callbacks = _at_end.get(task)
    if callbacks is None:
        callbacks = _at_end[task] = []
        # A callback of gRPC's context would be a cycle of references, and keep the call's memory.
        task.add_done_callback(_call_back)
    callbacks.append(callback)


def _call_back(task: "asyncio.Task[object]") -> None:
    for callback in _at_end.pop(task):
        callback()


class SendLimit:
    """Cuts off unary calls whose answers are not sent in time. One timer serves all calls.

    Args:
        max_send_s: How long an answer may take to be sent, in seconds.
    """

    def __init__(self, max_send_s: float) -> None:
        self._max_send_s = max_send_s
        # When each answer is late, as times of the loop; the earliest comes first.
        self._late_at: dict[asyncio.Task[object], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Limits the time until the current call's answer is sent. To be called once for a call."""
        task, loop = current_task(), asyncio.get_running_loop()
        self._late_at[task] = late_at = loop.time() + self._max_send_s
        when_sent(partial(self._late_at.pop, task, None))
        if self._timer is None:
            self._timer = loop.call_at(late_at, self._check_time)

    def _check_time(self) -> None:
        self._timer, loop = None, asyncio.get_running_loop()
        for task, late_at in list(self._late_at.items()):
            if late_at > loop.time():
                self._timer = loop.call_at(late_at, self._check_time)
                return
            del self._late_at[task]
            cut_off_late(task, self._max_send_s)


def cut_off(task: "asyncio.Task[object]") -> None:
    """Ends a call and frees its unsent answers: RST_STREAM, CANCELLED at the client.

    ``grpc.aio`` has no function for this. It cancels a call once nothing refers to it: neither the
    task that runs the call's handler nor the task that awaits its end.

    Args:
        task: The task that runs the call's handler.
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
    """Drops the traceback of an error, and of the errors that caused it.

    Futures, tasks and gRPC's calls refer to errors, and tracebacks to frames: their messages and
    images would stay in memory until the next garbage collection, which counts objects, not bytes.
    """
    errors: list[BaseException | None] = [error]
    while errors:
        found = errors.pop()
        if found is None or not any((found.__traceback__, found.__context__, found.__cause__)):
            continue  # seen already, or never raised
        errors += found.__context__, found.__cause__
        if isinstance(found, BaseExceptionGroup):
            errors += found.exceptions
        found.__traceback__ = found.__context__ = found.__cause__ = None


def cut_off_late(task: "asyncio.Task[object]", seconds: float) -> None:
    """Ends a call whose answer was not read in time, and logs a warning."""
    logger.warning("An answer was not taken for %g s; its call is cut off", seconds)
    cut_off(task)


def current_task() -> "asyncio.Task[object]":
    """Returns the task that runs the handler of the current call."""
    task = asyncio.current_task()
    assert task is not None  # handlers run in tasks
    return task


def hide_lost_clients() -> None:
    """Keeps gRPC from logging a traceback when a client leaves before its answer."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_lost_client)


def _is_no_lost_client(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, grpc.aio.InternalError):
        return True
    logger.debug("The client of a call is gone: %r", error)
    return False
