"""Calls and streams of both clients against a real server in this process."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from gradcam_client import (
    DeadlineExceededError,
    ImageInput,
    InvalidRequestError,
    MessageTooLargeError,
    Outcome,
    RetryPolicy,
    UnavailableError,
)
from unit.client.both import BlockingClient, Connect
from unit.client.fake_server import MAX_REQUEST_BYTES, FakeServer, make_status

CODE = grpc.StatusCode
NOWHERE = "127.0.0.1:1"
TOO_LARGE = b"5" + b"x" * MAX_REQUEST_BYTES


@pytest.fixture
def client(connect: Connect, server: FakeServer, retry: RetryPolicy) -> Iterator[BlockingClient]:
    with connect(server.target, timeout_s=20, retry=retry) as client:
        yield client


def images(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def ends(outcomes: Iterable[Outcome]) -> list[Any]:
    """The number or the error class of each outcome."""
    return [one.result.top.index if one.result else type(one.error) for one in outcomes]


def test_an_image_is_explained(client: BlockingClient, server: FakeServer) -> None:
    """Options arrive at the server and its answer comes back as a result."""
    result = client.explain(b"7", top_k=3, layers="conv5")
    assert (result.model, result.top.index) == ("fake", 7)
    assert (server.requests[0].top_k, server.requests[0].layers) == (3, ["conv5"])


def test_a_wrong_request_is_sent_once(client: BlockingClient, server: FakeServer) -> None:
    """An invalid request is not retried, and its error names the field."""
    server.script.append(server.fail(CODE.INVALID_ARGUMENT, "no such class", field="targets"))
    with pytest.raises(InvalidRequestError, match="no such class") as raised:
        client.explain(b"7")
    assert raised.value.field == "targets"
    assert len(server.requests) == 1


def test_a_large_message_is_sent_once(client: BlockingClient, server: FakeServer) -> None:
    """A message over the server's limit is not retried as if the queue were full."""
    with pytest.raises(MessageTooLargeError):
        client.explain(TOO_LARGE)
    assert client.explain(b"7").top.index == 7


def test_outcomes_come_in_order(client: BlockingClient, server: FakeServer) -> None:
    """Answers out of order are yielded in the order of the images, with their sources."""
    server.streams.append(server.reverse_in_groups(5))
    outcomes = client.explain_stream(images(40), max_in_flight=10)
    assert [outcome.source for outcome in outcomes] == images(40)
    assert ends(outcomes) == list(range(40))


def test_bad_items_do_not_end_the_stream(
    client: BlockingClient, server: FakeServer, tmp_path: Path
) -> None:
    """An unreadable path, a wrong array and a refusal are outcomes in their place."""
    bad = make_status(CODE.INVALID_ARGUMENT, "bad", field="image")
    server.streams.append(server.answer_with({3: [bad]}))
    mixed: list[ImageInput] = [
        b"0",
        tmp_path / "missing.jpg",
        np.zeros((2, 2), np.uint8),
        b"3",
        b"4",
    ]
    found = ends(client.explain_stream(mixed))
    assert found == [0, FileNotFoundError, ValueError, InvalidRequestError, 4]


def test_a_refused_item_is_tried_again(client: BlockingClient, server: FakeServer) -> None:
    """A retryable error of one image is retried on the same stream."""
    full = make_status(CODE.RESOURCE_EXHAUSTED, "full", retry_after_s=0.02)
    server.streams.append(server.answer_with({1: [full, full]}))
    assert ends(client.explain_stream(images(4))) == [0, 1, 2, 3]
    assert len(server.received) == 1
    assert server.received[0].count(1) == 3


@pytest.mark.parametrize("broken", ["break_after", "end_after"])
def test_a_broken_stream_is_resumed(
    client: BlockingClient, server: FakeServer, broken: str
) -> None:
    """After a break, nothing is lost and nothing that was answered is sent again."""
    server.streams.extend(getattr(server, broken)(count) for count in (5, 3))
    assert ends(client.explain_stream(images(30), max_in_flight=8)) == list(range(30))
    answered = [number for stream in server.answered for number in stream]
    assert sorted(answered) == list(range(30))
    assert not set(server.received[1]) & set(server.answered[0])


def test_a_finished_stream_ends_well(client: BlockingClient, server: FakeServer) -> None:
    """The server sees a stream that was answered end normally, not cancelled."""
    assert ends(client.explain_stream(images(3))) == [0, 1, 2]
    assert not server.cancelled.is_set()


def test_a_stream_that_never_gets_on_fails(client: BlockingClient, server: FakeServer) -> None:
    """When the attempts are used up, the images taken fail, and later images start anew."""
    server.streams.extend([server.break_after(0)] * 4)
    found = ends(client.explain_stream(images(8), max_in_flight=2))
    assert found == [UnavailableError] * 2 + [2, 3, 4, 5, 6, 7]


def test_without_a_server_each_image_has_its_error(connect: Connect, retry: RetryPolicy) -> None:
    """Every image has an outcome even if there is no server."""
    with connect(NOWHERE, retry=retry) as client:
        assert ends(client.explain_stream(images(3))) == [UnavailableError] * 3


def test_one_large_image_fails_alone(client: BlockingClient) -> None:
    """A large message breaks the whole stream in gRPC; only its image fails."""
    mixed = [*images(5), TOO_LARGE, *images(5)]
    found = ends(client.explain_stream(mixed))
    assert found == [0, 1, 2, 3, 4, MessageTooLargeError, 0, 1, 2, 3, 4]


def test_silence_has_a_limit(client: BlockingClient, server: FakeServer) -> None:
    """Without any answer for the timeout, the images taken fail, and later images start anew."""
    server.streams.append(server.never_answer)
    found = ends(client.explain_stream(images(4), max_in_flight=2, timeout_s=0.3))
    assert found == [DeadlineExceededError, DeadlineExceededError, 2, 3]
    assert server.cancelled.wait(10)
