"""Targets and channel options."""

from collections.abc import Sequence

import pytest

from gradcam_client import RetryPolicy
from gradcam_client.transport import merge_options, split_target


@pytest.mark.parametrize(
    ("target", "targets"),
    [
        ("a:1", ("a:1",)),
        ("a:1, b:2,[::1]:3", ("a:1", "b:2", "[::1]:3")),
        (["a:1", "b:2", "a:1"], ("a:1", "b:2")),
        ("ipv4:1.2.3.4:1,5.6.7.8:2", ("ipv4:1.2.3.4:1,5.6.7.8:2",)),
        ("dns:///a,b:1", ("dns:///a,b:1",)),
        ("custom://a,b", ("custom://a,b",)),
        (("unix:/tmp/a,b", "a:1"), ("unix:/tmp/a,b", "a:1")),
    ],
)
def test_addresses_are_told_apart(target: str | Sequence[str], targets: tuple[str, ...]) -> None:
    """Commas divide addresses, but not the targets of gRPC's own schemes; each is taken once."""
    assert split_target(target) == targets


def test_given_options_win() -> None:
    """Options of the caller replace those of the client, one by one."""
    options = merge_options(7, RetryPolicy(), [("grpc.keepalive_time_ms", 1), ("more", 2)])
    assert (options["grpc.keepalive_time_ms"], options["more"]) == (1, 2)
    assert options["grpc.max_send_message_length"] == 7


def test_a_lost_server_is_looked_for_every_second() -> None:
    """Connections are tried about once a second, whatever the policy of retries."""
    options = merge_options(7, RetryPolicy(initial_backoff_s=3, max_backoff_s=60), [])
    assert options["grpc.initial_reconnect_backoff_ms"] == 1000
    assert options["grpc.max_reconnect_backoff_ms"] == 1000
