"""The ledger of a stream."""

from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import (
    DeadlineExceededError,
    Failed,
    GradCamError,
    InvalidRequestError,
    MessageTooLargeError,
    Outcome,
    OverloadedError,
    RetryPolicy,
    UnavailableError,
)
from gradcam_client.stream import StreamLedger
from unit.client.fake_server import make_status, number_of, respond

CODE = grpc.StatusCode
AWAY = UnavailableError(CODE.UNAVAILABLE, "away")
TOO_LARGE = MessageTooLargeError(CODE.RESOURCE_EXHAUSTED, "larger than max")
FULL = make_status(CODE.RESOURCE_EXHAUSTED, "full")
BAD = make_status(CODE.INVALID_ARGUMENT, "bad")


def make_ledger(max_in_flight: int = 8, timeout_s: float = 60) -> StreamLedger:
    policy = RetryPolicy(max_attempts=3, initial_backoff_s=1, max_backoff_s=4)
    return StreamLedger(policy, max_in_flight=max_in_flight, timeout_s=timeout_s)


def take(ledger: StreamLedger, *numbers: int, now: float = 0) -> None:
    for number in numbers:
        data = b"%d" % number
        ledger.take(data, pb.ExplainImageRequest(encoded_image=data), now)


def send_due(ledger: StreamLedger, now: float = 0) -> list[pb.StreamExplainImagesRequest]:
    requests = []
    while (request := ledger.next_request(now)) is not None:
        requests.append(request)
    return requests


def numbers(requests: list[pb.StreamExplainImagesRequest]) -> list[int]:
    return [number_of(request.request) for request in requests]


def answer(
    ledger: StreamLedger,
    request: pb.StreamExplainImagesRequest,
    error: Status | None = None,
    now: float = 0,
) -> None:
    response = None if error else respond(request.request)
    ledger.answered(
        pb.StreamExplainImagesResponse(
            correlation_id=request.correlation_id, response=response, error=error
        ),
        now,
    )


def yielded(ledger: StreamLedger) -> list[Any]:
    """The numbers and error classes of the outcomes that are ready."""
    ends: list[Any] = []
    while (outcome := ledger.next_outcome()) is not None:
        ends.append(outcome.result.top.index if outcome.result else type(outcome.error))
    return ends


def test_progress_keeps_an_image_waiting() -> None:
    """Progress is returned and postpones the timeout; of an unknown image it is ignored."""
    ledger = make_ledger(timeout_s=10)
    take(ledger, 7)
    (request,) = send_due(ledger)
    message = pb.StreamExplainImagesResponse(correlation_id=request.correlation_id)
    message.progress.completed_pass_count, message.progress.total_pass_count = 3, 33
    progress = ledger.answered(message, 6)
    assert progress is not None
    assert (progress.source, progress.completed_passes, progress.total_passes) == (b"7", 3, 33)
    assert ledger.expires_in_s(6) == 10
    message.correlation_id = "another"
    assert ledger.answered(message, 8) is None
    assert yielded(ledger) == []
    answer(ledger, request, now=9)
    assert yielded(ledger) == [7]


def test_answers_are_put_in_order() -> None:
    """Outcomes come in the order of the images, whatever the order of the answers."""
    ledger = make_ledger()
    take(ledger, 0, 1, 2)
    first, second, third = send_due(ledger)
    answer(ledger, third)
    answer(ledger, second)
    assert yielded(ledger) == []
    answer(ledger, first)
    assert yielded(ledger) == [0, 1, 2]


def test_room_is_counted_from_taking_to_yielding() -> None:
    """An answered image counts as in flight until it is yielded: memory stays bounded."""
    ledger = make_ledger(max_in_flight=2)
    take(ledger, 0)
    assert ledger.has_room
    ledger.take_failed("missing.jpg", FileNotFoundError())
    assert not ledger.has_room
    answer(ledger, send_due(ledger)[0])
    assert not ledger.has_room
    assert ledger.next_outcome() is not None
    assert ledger.has_room


def test_a_bad_image_keeps_its_place_in_the_order() -> None:
    """An image that cannot be sent is an outcome between its neighbours."""
    ledger = make_ledger()
    take(ledger, 0)
    ledger.take_failed("missing.jpg", FileNotFoundError())
    take(ledger, 2)
    for request in send_due(ledger):
        answer(ledger, request)
    assert yielded(ledger) == [0, FileNotFoundError, 2]


def test_what_broke_off_is_sent_again() -> None:
    """After a break, exactly the unanswered images are sent again, in order, after a pause."""
    ledger = make_ledger()
    take(ledger, 0, 1, 2)
    first, second, _ = send_due(ledger)
    answer(ledger, second)
    take(ledger, 3)
    ledger.broke(AWAY, now=10)
    pause_s = ledger.due_in_s(now=10)
    assert pause_s is not None
    assert pause_s <= 1
    assert numbers(send_due(ledger, now=11)) == [0, 2, 3]
    answer(ledger, first, now=11)
    assert yielded(ledger) == [0, 1]


def test_breaks_without_an_answer_are_counted() -> None:
    """When the attempts are used up, the images taken fail, and later images start anew."""
    ledger = make_ledger()
    take(ledger, 0, 1)
    for now in (0, 10, 20):
        assert yielded(ledger) == []
        send_due(ledger, now)
        ledger.broke(AWAY, now)
    assert yielded(ledger) == [UnavailableError, UnavailableError]
    take(ledger, 2, now=20)
    (request,) = send_due(ledger, now=20)
    ledger.broke(AWAY, now=20)
    assert ledger.due_in_s(now=30) == 0
    assert numbers(send_due(ledger, now=30)) == [2]
    answer(ledger, request)
    assert yielded(ledger) == [2]


def test_an_answer_starts_the_count_again() -> None:
    """A stream may break any number of times if it answers images in between."""
    ledger = make_ledger(max_in_flight=99)
    take(ledger, *range(20))
    for now in range(0, 200, 10):
        answer(ledger, send_due(ledger, now)[0], now=now)
        ledger.broke(AWAY, now)
    assert yielded(ledger) == list(range(20))


def test_a_break_between_images_is_no_failure() -> None:
    """An idle stream that breaks leaves nothing behind."""
    ledger = make_ledger()
    for _ in range(5):
        ledger.broke(AWAY, now=0)
    take(ledger, 0)
    assert numbers(send_due(ledger)) == [0]


def test_a_retryable_answer_is_tried_again_alone() -> None:
    """A full queue delays only the image that it refused."""
    ledger = make_ledger()
    take(ledger, 0, 1)
    first, second = send_due(ledger)
    answer(ledger, first, FULL)
    answer(ledger, second)
    assert ledger.due_in_s(now=0) is not None
    assert numbers(send_due(ledger, now=5)) == [0]
    answer(ledger, first)
    assert yielded(ledger) == [0, 1]


def test_each_image_has_its_attempts() -> None:
    """An image that stays refused fails after the policy's attempts."""
    ledger = make_ledger()
    take(ledger, 0)
    for now in (0, 10, 20):
        (request,) = send_due(ledger, now)
        answer(ledger, request, FULL, now)
    assert yielded(ledger) == [OverloadedError]


def test_other_answers_are_final() -> None:
    """A wrong request is not sent twice."""
    ledger = make_ledger()
    take(ledger, 0)
    answer(ledger, send_due(ledger)[0], BAD)
    assert yielded(ledger) == [InvalidRequestError]


def test_the_image_that_breaks_streams_is_found() -> None:
    """An image that breaks every stream fails alone: images are sent one by one."""
    ledger = make_ledger()
    take(ledger, 0, 1, 2)
    send_due(ledger)
    ledger.broke(TOO_LARGE, now=0)
    (alone,) = send_due(ledger)
    answer(ledger, alone)
    assert numbers(send_due(ledger)) == [1]
    ledger.broke(TOO_LARGE, now=0)
    (last,) = send_due(ledger)
    take(ledger, 3, 4)
    assert send_due(ledger) == []
    answer(ledger, last)
    assert numbers(send_due(ledger)) == [3, 4]
    assert yielded(ledger) == [0, MessageTooLargeError, 2]


def test_silence_fails_what_waits() -> None:
    """Every answer restarts the timeout; when it ends, all unanswered images fail."""
    ledger = make_ledger(timeout_s=5)
    assert ledger.expires_in_s(now=100) is None
    take(ledger, 0, 1, now=100)
    first, _ = send_due(ledger, now=100)
    assert ledger.expires_in_s(now=101) == 4
    answer(ledger, first, now=103)
    assert ledger.expires_in_s(now=104) == 4
    assert ledger.expires_in_s(now=109) == 0
    ledger.expire()
    assert yielded(ledger) == [0, DeadlineExceededError]
    assert ledger.expires_in_s(now=109) is None


def test_no_pause_outlasts_the_silence() -> None:
    """A server that asks for a longer pause than the timeout is not waited for."""
    ledger = make_ledger(timeout_s=5)
    take(ledger, 0)
    send_due(ledger)
    ledger.broke(UnavailableError(CODE.UNAVAILABLE, "away", retry_after_s=6), now=0)
    assert yielded(ledger) == [UnavailableError]


def test_late_answers_are_passed_over() -> None:
    """An answer to a request that already has its outcome changes nothing."""
    ledger = make_ledger()
    take(ledger, 0)
    (request,) = send_due(ledger)
    ledger.expire()
    answer(ledger, request)
    assert yielded(ledger) == [DeadlineExceededError]


def test_unwrap_returns_or_raises() -> None:
    """An outcome is unwrapped into its result or its error."""
    with pytest.raises(FileNotFoundError):
        Failed("missing.jpg", FileNotFoundError()).unwrap()
    ledger = make_ledger()
    take(ledger, 7)
    answer(ledger, send_due(ledger)[0])
    outcome = ledger.next_outcome()
    assert outcome is not None
    assert outcome.unwrap().top.index == 7


def test_room_for_nothing_is_refused() -> None:
    """A stream that could never take an image is an error, not a hang."""
    with pytest.raises(ValueError, match="max_in_flight"):
        make_ledger(max_in_flight=0)


ACTIONS = st.sampled_from(["take", "send", "answer", "refuse", "fail", "break", "poison", "yield"])


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(0, 12),
    limit=st.integers(1, 5),
    actions=st.lists(st.tuples(ACTIONS, st.integers(0, 4)), max_size=60),
)
def test_every_image_has_one_outcome_in_order(
    count: int, limit: int, actions: list[tuple[str, int]]
) -> None:
    """Whatever happens in whatever order: one outcome each, in order, and within bounds."""
    ledger = make_ledger(max_in_flight=limit, timeout_s=1e6)
    on_wire: list[pb.StreamExplainImagesRequest] = []
    outcomes: list[Outcome] = []
    taken, now = 0, 0.0
    until_the_end = [("take", 0), ("send", 0), ("answer", 0), ("yield", 0)] * 100
    for action, choice in [*actions, *until_the_end]:
        now += 10  # longer than any pause
        match action:
            case "take" if taken == count:
                ledger.end_input()
            case "take" if ledger.has_room:
                take(ledger, taken, now=now)
                taken += 1
            case "send":
                on_wire += send_due(ledger, now)
            case "answer" | "refuse" | "fail" if on_wire:
                error = {"answer": None, "refuse": FULL, "fail": BAD}[action]
                answer(ledger, on_wire.pop(choice % len(on_wire)), error, now)
            case "break" | "poison":
                on_wire.clear()
                ledger.broke(AWAY if action == "break" else TOO_LARGE, now)
            case "yield":
                while (outcome := ledger.next_outcome()) is not None:
                    outcomes.append(outcome)
        assert len(on_wire) <= taken - len(outcomes) <= limit
    assert ledger.all_yielded
    assert [outcome.source for outcome in outcomes] == [b"%d" % number for number in range(count)]
    for number, outcome in enumerate(outcomes):
        if outcome.result is not None:
            assert outcome.result.top.index == number
        else:
            assert isinstance(outcome.error, GradCamError)
