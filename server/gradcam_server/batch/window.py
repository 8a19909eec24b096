"""The window between a list of items and the threads that explain them."""

import threading
from collections.abc import Iterator

from gradcam_server.batch.schema import Row
from gradcam_server.batch.sources.base import Item


class Window:
    """Hands out items to threads, and gives their rows in order.

    Args:
        items: The items.
        size: How many items may be handed out whose rows are not yet taken.
    """

    def __init__(self, items: Iterator[Item], size: int) -> None:
        self._items, self._size = enumerate(items), size
        self._changed = threading.Condition()
        self._reading = threading.Lock()
        self._rows: dict[int, Row] = {}
        self._out = self._handed_out = 0
        self._error: BaseException | None = None
        self._total: int | None = None
        self.closed = False

    @property
    def ended(self) -> bool:
        """Whether all items are handed out, or the window is closed."""
        return self.closed or self._total is not None

    def items(self) -> Iterator[tuple[int, Item]]:
        """Yields numbers and items, each to one thread only, as soon as there is room for them."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.ended or self._out < self._size)
                if self.ended:
                    return
                self._out += 1
            with self._reading:
                following = None if self.ended else next(self._items, None)
                with self._changed:
                    if following is None:
                        self._out -= 1
                        self._total = self._handed_out
                        self._changed.notify_all()
                        return
                    self._handed_out += 1
            yield following

    def put(self, number: int, row: Row) -> None:
        """Takes the row of an item."""
        with self._changed:
            self._rows[number] = row
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Lets ``rows`` raise an error after the rows that precede it."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def close(self) -> None:
        """Hands out no more items."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def rows(self) -> Iterator[Row]:
        """Yields the rows in the order of their items.

        Raises:
            BaseException: The error of a thread, as given to ``fail``.
        """
        number = 0
        while (row := self._take(number)) is not None:
            yield row
            number += 1

    def _take(self, number: int) -> Row | None:
        with self._changed:
            self._changed.wait_for(
                lambda: number in self._rows or number == self._total or self._error is not None
            )
            if number in self._rows:
                self._out -= 1
                self._changed.notify_all()
                return self._rows.pop(number)
            if self._error is not None:
                raise self._error
            return None
