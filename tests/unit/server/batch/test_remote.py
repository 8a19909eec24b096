"""Rows of servers' answers and errors."""

from typing import Any

import grpc
import pytest

from gradcam_client import GradCamError, InvalidRequestError, UnavailableError
from gradcam_client.errors import ServerError
from gradcam_client.stream import Failed
from gradcam_server.batch.errors import StageError
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.remote import outcome_row
from gradcam_server.batch.schema import Row
from support.made_rows import Numbers

CODE = grpc.StatusCode


def row_of_error(error: Any) -> Row:
    item = next(Numbers(1).read(0, 1))
    return outcome_row(item, Failed(b"", error), ExplainOptions(), "a:1, b:2")


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError(CODE.INVALID_ARGUMENT, "it is truncated", None, "encoded_image"),
        ServerError(CODE.INTERNAL, "internal error"),
        FileNotFoundError("no such file"),
    ],
)
def test_what_an_image_is_at_fault_for_is_its_row(error: GradCamError) -> None:
    """An error of one image is its row; the other images go on."""
    row = row_of_error(error)
    assert (row.status, row.error) == ("error", str(error))


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError(CODE.UNAVAILABLE, "no connection"),
        InvalidRequestError(CODE.INVALID_ARGUMENT, "unknown class", None, "targets"),
    ],
)
def test_what_all_images_would_fail_with_ends_the_job(error: GradCamError) -> None:
    """An error that concerns all images ends the job: it gives no rows."""
    with pytest.raises(StageError, match="a:1, b:2: "):
        row_of_error(error)
