"""Checks that a test leaves no open descriptors and no children."""

import asyncio
from pathlib import Path

import psutil


class Leftovers:
    """Counts the descriptors and children of this process before a test.

    A mapping of shared memory holds a descriptor, too.
    """

    def __init__(self) -> None:
        self._before = _held()

    async def check(self) -> None:
        """Fails if there are more than before; transports may take a moment to close."""
        try:
            async with asyncio.timeout(5):
                while not self._is_clean():  # noqa: ASYNC110 - there is no event to wait for
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"before {self._before}, now {_held()}") from None

    def _is_clean(self) -> bool:
        return all(now <= then for now, then in zip(_held(), self._before, strict=True))


def _held() -> tuple[int, int]:
    return len(list(Path("/proc/self/fd").iterdir())), len(psutil.Process().children())
