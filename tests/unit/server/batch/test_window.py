"""The window between the source and the streams."""

import threading
import time

import pytest

from gradcam_server.batch.errors import StageError
from gradcam_server.batch.window import Window
from support.made_rows import Numbers, made_row


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_come_in_order_and_a_bounded_number_is_out(threads: int) -> None:
    """Rows are in the order of items, whichever thread is first."""
    window = Window(Numbers(200).read(0, 200), size=8)
    out = max_out = 0
    lock = threading.Lock()

    def work(slow: bool) -> None:
        nonlocal out, max_out
        for number, item in window.items():
            with lock:
                out += 1
                max_out = max(max_out, out)
            if slow and number % 20 == 0:
                time.sleep(0.005)
            window.put(number, made_row(item))

    workers = [threading.Thread(target=work, args=(at == 0,)) for at in range(threads)]
    for worker in workers:
        worker.start()
    indices = []
    for row in window.rows():
        with lock:
            out -= 1
        indices.append(row.index)
    for worker in workers:
        worker.join()
    assert indices == list(range(200))
    assert max_out <= 8 + 1  # a row may be taken before the test counts it


def test_a_streams_failure_is_raised_after_the_rows_before_it() -> None:
    """Rows before the error are not lost."""
    window = Window(Numbers(3).read(0, 3), size=8)
    number, item = next(window.items())
    window.put(number, made_row(item))
    window.fail(StageError("gone"))
    rows = window.rows()
    assert next(rows).index == 0
    with pytest.raises(StageError, match="gone"):
        next(rows)
