"""Which line an attempt takes."""

from collections import Counter

import grpc
import pytest

from gradcam_client import GradCamError, OverloadedError, ServerError, UnavailableError
from gradcam_client.lines import Line, Lines

CODE = grpc.StatusCode
AWAY = UnavailableError(CODE.UNAVAILABLE, "away")


def make_lines(*servers: int) -> Lines:
    channel = grpc.insecure_channel("127.0.0.1:1")  # connects when it is used
    lines = Lines(lambda: [(server, "127.0.0.1:1", channel) for server in servers])
    lines.open()
    return lines


def take(lines: Lines, now: float = 0, tried: Counter[Line] | None = None) -> int:
    """The number of the line that is taken, and kept."""
    return lines.all.index(lines.take(Counter() if tried is None else tried, now))


def test_the_least_loaded_line_is_taken() -> None:
    """A line that is free again comes before those that are busy, and equals take turns."""
    lines = make_lines(0, 1, 0, 1)
    assert [take(lines) for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    lines.release(lines.all[1])
    lines.release(lines.all[1])
    assert [take(lines) for _ in range(2)] == [1, 2]


def test_a_call_goes_where_it_has_not_been() -> None:
    """Another server is better than another line, and that better than the same, busy or not."""
    lines = make_lines(0, 1, 0)
    lines.all[1].load = 9
    tried = Counter({lines.all[0]: 1})
    assert take(lines, tried=tried) == 1
    tried[lines.all[1]] += 1
    assert take(lines, tried=tried) == 2


def test_a_server_that_asked_for_a_pause_rests() -> None:
    """All lines of a server rest for as long as it asked, and no longer."""
    lines = make_lines(0, 1, 0)
    refusal = OverloadedError(CODE.RESOURCE_EXHAUSTED, "full", retry_after_s=7)
    lines.failed(lines.all[0], refusal, now=10)
    assert [take(lines, now=16) for _ in range(3)] == [1, 1, 1]
    assert lines.rested_in_s(now=16) == 0
    assert take(lines, now=17) != 1


def test_a_server_without_a_connection_rests_briefly() -> None:
    """A server that is away is asked again about once in a second, not at every call."""
    lines = make_lines(0, 1)
    lines.failed(lines.all[0], AWAY, now=10)
    assert [take(lines, now=10.9) for _ in range(2)] == [1, 1]
    assert take(lines, now=11) == 0


@pytest.mark.parametrize(
    "error", [OverloadedError(CODE.RESOURCE_EXHAUSTED, "full"), ServerError(CODE.INTERNAL, "?")]
)
def test_other_errors_are_no_reason_to_rest(error: GradCamError) -> None:
    """One call that failed says nothing about the next."""
    lines = make_lines(0, 1)
    lines.failed(lines.all[0], error, now=10)
    assert {take(lines, now=10) for _ in range(2)} == {0, 1}


def test_while_all_rest_all_are_asked() -> None:
    """Resting is a preference: a call is never without a line."""
    lines = make_lines(0, 1)
    for line in lines.all:
        lines.failed(line, UnavailableError(CODE.UNAVAILABLE, "", 5.0 + line.server), now=0)
    assert {take(lines, now=1) for _ in range(2)} == {0, 1}
    assert lines.rested_in_s(now=1) == 4
