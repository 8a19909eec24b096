"""The place between the thread that reads a source and the event loop that explains its frames."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from gradcam_server.watch.frames import Frame


class FrameSlot:
    """Holds one frame.

    Of a live source a new frame replaces an untaken one, which is shed; of a file or folder
    ``put`` waits until the frame is taken. Any number of tasks of one event loop may take.

    Args:
        is_live: Whether only the newest frame counts.
        on_shed: Called in the reading thread with each frame that is replaced.
    """

    def __init__(self, is_live: bool, on_shed: Callable[[Frame], None] = lambda _: None) -> None:
        self._is_live, self._on_shed = is_live, on_shed
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._is_ended = self._is_closed = False
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._shed = 0

    @property
    def shed(self) -> int:
        """The number of frames that were replaced before they were taken."""
        return self._shed

    def put(self, frame: Frame) -> bool:
        """Stores a frame; called by the reading thread.

        Returns:
            False if the slot is closed: nobody will take the frame.
        """
        with self._changed:
            if not self._is_live:
                self._changed.wait_for(lambda: self._frame is None or self._is_closed)
            if self._is_closed:
                return False
            replaced, self._frame = self._frame, frame
            self._wake()
            if replaced is not None:
                self._shed += 1
        if replaced is not None:
            self._on_shed(replaced)
        return True

    def end(self) -> None:
        """Says that no frame follows; called by the reading thread."""
        with self._changed:
            self._is_ended = True
            self._wake()

    def close(self) -> None:
        """Drops the frame and ends ``put`` and ``take``; may be called by any thread."""
        with self._changed:
            self._is_closed, self._frame = True, None
            self._changed.notify_all()
            self._wake()

    async def take(self) -> Frame | None:
        """Waits for a frame and removes it; returns None after the last.

        A cancelled ``take`` loses no frame.
        """
        while True:
            with self._changed:
                if self._frame is not None:
                    frame, self._frame = self._frame, None
                    self._changed.notify_all()
                    return frame
                if self._is_ended or self._is_closed:
                    return None
                if self._waiting is None:
                    self._waiting = asyncio.get_running_loop(), asyncio.Event()
                event = self._waiting[1]
                event.clear()
            await event.wait()

    def _wake(self) -> None:
        if self._waiting is not None:
            loop, event = self._waiting
            # The loop may be closed: then nobody waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(event.set)
