"""The window between the list and the streams, and what answers become."""

import threading
import time

import grpc
import pytest

from gradcam_client import GradCamError, InvalidRequestError, UnavailableError
from gradcam_client.errors import ServerError
from gradcam_client.stream import Outcome
from gradcam_server.batch.errors import StageError
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.remote import RemoteStage, _Window
from support.made_rows import Numbers, made_row

CODE = grpc.StatusCode


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_come_in_order_and_a_bounded_number_is_out(threads: int) -> None:
    """Whichever stream answers first."""
    window = _Window(Numbers(200).read(0, 200), size=8)
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
    assert max_out <= 8 + 1  # one was taken and is not yet counted


def test_a_streams_failure_is_raised_after_the_rows_before_it() -> None:
    """What is answered is not lost."""
    window = _Window(Numbers(3).read(0, 3), size=8)
    number, item = next(window.items())
    window.put(number, made_row(item))
    window.fail(StageError("gone"))
    rows = window.rows()
    assert next(rows).index == 0
    with pytest.raises(StageError, match="gone"):
        next(rows)


def stage() -> RemoteStage:
    made = object.__new__(RemoteStage)
    made._options, made._targets = ExplainOptions(), ("a:1", "b:2")
    return made


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError(CODE.INVALID_ARGUMENT, "it is truncated", None, "encoded_image"),
        ServerError(CODE.INTERNAL, "internal error"),
        FileNotFoundError("no such file"),
    ],
)
def test_what_an_image_is_at_fault_for_is_its_row(error: GradCamError) -> None:
    """The others go on."""
    item = next(Numbers(1).read(0, 1))
    row = stage()._row(item, Outcome(b"", None, error))
    assert (row.status, row.error) == ("error", str(error))


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError(CODE.UNAVAILABLE, "no connection"),
        InvalidRequestError(CODE.INVALID_ARGUMENT, "unknown class", None, "targets"),
    ],
)
def test_what_all_images_would_fail_with_ends_the_job(error: GradCamError) -> None:
    """A job without servers must not become a folder of errors."""
    item = next(Numbers(1).read(0, 1))
    with pytest.raises(StageError, match="a:1, b:2: "):
        stage()._row(item, Outcome(b"", None, error))
