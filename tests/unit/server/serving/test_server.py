"""The health of the server, without any process."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gradcam_server.serving.server import why_not_alive


@pytest.mark.parametrize(
    ("is_guarding", "is_supervised", "reason"),
    [
        (True, True, None),
        (True, False, "a front end that is lost would not be started again"),
        (False, False, "an engine that is lost would not be started again"),
    ],
)
def test_a_server_without_supervision_is_not_alive(
    is_guarding: bool, is_supervised: bool, reason: str | None
) -> None:
    """Its liveness names the processes that would not be started again."""
    supervisor = cast("Any", SimpleNamespace(is_guarding=is_guarding))
    pool = cast("Any", SimpleNamespace(is_supervised=is_supervised))
    assert why_not_alive(supervisor, pool) == reason
