"""Reads a source of gradcam watch in a thread, as the watcher does."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gradcam_server.watch.frames import Frame, FrameSource


class Reading:
    """The frames that came so far.

    Args:
        source: The source.
        marks_done: Whether each frame counts as done at once.
    """

    def __init__(self, source: FrameSource, marks_done: bool) -> None:
        self.source, self.frames = source, list[Frame]()
        self.error: BaseException | None = None
        self._marks_done = marks_done
        self.thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        try:
            for frame in self.source.frames():
                self.frames.append(frame)
                if self._marks_done:
                    self.source.done(frame)
        except Exception as error:  # noqa: BLE001 - the test raises it
            self.error = error

    def wait(self, condition: Callable[[], bool], timeout_s: float = 20) -> None:
        """Waits until a condition holds.

        Raises:
            TimeoutError: It did not in time.
        """
        end = time.monotonic() + timeout_s
        while not condition():
            if self.error is not None:
                raise self.error
            if time.monotonic() > end:
                raise TimeoutError(f"{len(self.frames)} frames came")
            time.sleep(0.01)

    def wait_for(self, count: int, timeout_s: float = 20) -> None:
        """Waits until so many frames have come."""
        self.wait(lambda: len(self.frames) >= count, timeout_s)

    def names(self) -> list[str]:
        """Returns the files' names of the frames that came."""
        return [frame.path.name for frame in self.frames if frame.path is not None]


@contextmanager
def reading(source: FrameSource, *, marks_done: bool = True) -> Iterator[Reading]:
    """Reads a source until the block ends, and checks that it then ends within a second."""
    found = Reading(source, marks_done)
    found.thread.start()
    try:
        yield found
    finally:
        source.close()
        found.thread.join(1)
    assert not found.thread.is_alive()
    if found.error is not None:
        raise found.error
