"""An event loop whose time passes at once, for tests of what takes minutes."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class _Selector(selectors.DefaultSelector):
    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> Any:
        """Returns what is ready; instead of a wait for a timer, the time jumps."""
        if timeout is None:  # there is no timer: something else wakes the loop
            return super().select(None)
        events = super().select(0)
        if not events:
            self._advance(timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer when there is nothing to do; runs executors' work in place."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_Selector(self._advance))

    def time(self) -> float:
        """The virtual time in seconds."""
        return self._now

    def _advance(self, seconds: float) -> None:
        self._now += max(0.0, seconds)

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Runs the function at once, in this thread."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the caller gets it
            future.set_exception(error)
        return future


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
