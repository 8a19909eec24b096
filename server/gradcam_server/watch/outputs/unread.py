"""Standard streams that nobody reads any more: noticing it, and dropping what they still hold."""

import asyncio
import os
import select
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import IO


def on_reader_gone(file: IO[str], call: Callable[[], object]) -> None:
    """Calls a function in the running event loop when the reader of a pipe has closed it.

    A write would fail, but a folder may bring nothing to write for days.

    Args:
        file: The stream; of anything but a pipe the function is never called.
        call: The function, which is called at most once.
    """
    try:
        descriptor = file.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except (OSError, ValueError):  # it has no descriptor, or is closed
        return
    if not is_pipe:
        return
    loop = asyncio.get_running_loop()

    def look() -> None:
        loop.remove_reader(descriptor)
        poll = select.poll()
        poll.register(descriptor, 0)  # errors come unasked
        if poll.poll(0):
            call()

    loop.add_reader(descriptor, look)


def discard(file: IO[str]) -> None:
    """Sends to nowhere what a stream still holds, and all that follows.

    Python writes the rest of a buffer when it exits: it would fail again, and change the exit
    status to 120.
    """
    with suppress(OSError, ValueError):  # it has no descriptor, or is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, file.fileno())
        finally:
            os.close(nowhere)


def write_unless_stuck(descriptor: int, text: str) -> None:
    """Writes a line at once, or not at all if its reader is gone or does not read.

    It takes no lock, so that a signal handler may call it.
    """
    with suppress(OSError, ValueError):
        if select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, f"{text}\n".encode())
