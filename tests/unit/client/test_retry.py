"""The policy of retries."""

import math

import grpc
import pytest

from gradcam_client import InvalidRequestError, OverloadedError, RetryPolicy, UnavailableError

UNAVAILABLE = UnavailableError(grpc.StatusCode.UNAVAILABLE, "away")
POLICY = RetryPolicy(max_attempts=3, initial_backoff_s=1, max_backoff_s=5, multiplier=2)


def test_the_longest_pause_grows_to_its_limit() -> None:
    """Pauses grow by the multiplier and stop at the maximum, however many failures."""
    assert [POLICY.backoff_s(failures) for failures in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, 5]
    assert POLICY.backoff_s(10_000) == 5


def test_pauses_have_full_jitter() -> None:
    """Clients that fail together retry at times from 0 to the longest pause."""
    pauses = [POLICY.pause_s(UNAVAILABLE, 2, 60) or 0.0 for _ in range(500)]
    assert 0 <= min(pauses) < 0.5
    assert 1.5 < max(pauses) <= 2


def test_the_server_s_delay_is_a_lower_bound() -> None:
    """No pause is shorter than the server asked for."""
    error = OverloadedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_s=7)
    pauses = [POLICY.pause_s(error, 1, 60) for _ in range(100)]
    assert all(pause is not None and 7 <= pause <= 8 for pause in pauses)


def test_attempts_are_counted() -> None:
    """After the last attempt the error is final."""
    assert POLICY.pause_s(UNAVAILABLE, 2, 60) is not None
    assert POLICY.pause_s(UNAVAILABLE, 3, 60) is None
    assert RetryPolicy(max_attempts=1).pause_s(UNAVAILABLE, 1, 60) is None


def test_no_pause_outlasts_the_deadline() -> None:
    """If the pause would exceed the deadline, the error is final at once."""
    error = OverloadedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_s=7)
    assert POLICY.pause_s(error, 1, 7) is None
    assert POLICY.pause_s(UNAVAILABLE, 1, 0) is None


def test_other_errors_are_final() -> None:
    """A wrong request is not sent twice."""
    error = InvalidRequestError(grpc.StatusCode.INVALID_ARGUMENT, "bad")
    assert POLICY.pause_s(error, 1, 60) is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("max_attempts", 0),
        ("initial_backoff_s", 0),
        ("initial_backoff_s", 6),
        ("initial_backoff_s", math.nan),
        ("max_backoff_s", math.inf),
        ("multiplier", 0.5),
    ],
)
def test_senseless_policies_are_refused(argument: str, value: float) -> None:
    """A wrong argument is named when the policy is made."""
    with pytest.raises(ValueError, match=argument):
        RetryPolicy(**{argument: value})  # type: ignore[arg-type]
