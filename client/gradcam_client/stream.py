"""The state of a stream, without I/O; ``Client`` and ``AsyncClient`` share it.

    images -> taken -> waiting -> in flight -> answered -> yielded
                          ^           |
                          `-----------'  the stream broke, or a retryable error

Both clients move the messages, report events with their time to the ledger, and ask it what to
send and yield next.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn, TypeAlias

import grpc

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client.errors import DeadlineExceededError, GradCamError, UnavailableError, from_status
from gradcam_client.requests import ImageInput
from gradcam_client.results import ImageExplanation
from gradcam_client.retry import RetryPolicy

ImageError: TypeAlias = GradCamError | OSError | ValueError | TypeError
"""The errors of one image of a stream."""

_AT_ONCE = -math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """The result of one image of a stream.

    Attributes:
        source: The image as it was given.
        result: The answer.
        ok: True.
        error: None.
    """

    source: ImageInput
    result: ImageExplanation
    ok: ClassVar[Literal[True]] = True
    error: ClassVar[None] = None

    def unwrap(self) -> ImageExplanation:
        """Returns the result."""
        return self.result


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """The error of one image of a stream.

    Attributes:
        source: The image as it was given.
        error: The reason why there is no answer: a ``GradCamError`` of the server or the
            connection; ``OSError``, ``TypeError`` or ``ValueError`` for an image that could not
            be sent.
        ok: False.
        result: None.
    """

    source: ImageInput
    error: ImageError
    ok: ClassVar[Literal[False]] = False
    result: ClassVar[None] = None

    def unwrap(self) -> NoReturn:
        """Raises the error."""
        raise self.error


Outcome: TypeAlias = Explained | Failed
"""What became of one image of a stream: ``if outcome.ok`` tells ``Explained`` from ``Failed``, for
type checkers, too."""


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """The progress of an image with a method of many passes.

    Attributes:
        source: The image as it was given.
        completed_passes: Number of passes completed.
        total_passes: Upper bound of the number of passes.
    """

    source: ImageInput
    completed_passes: int
    total_passes: int


OnProgress: TypeAlias = Callable[[Progress], object]


@dataclass(slots=True)
class _Unanswered:
    source: ImageInput
    request: pb.ExplainImageRequest
    failures: int = 0


def ended_early() -> UnavailableError:
    """Returns the error of a stream that the server ended with OK before all was answered."""
    message = "the server ended the stream before all was answered"
    return UnavailableError(grpc.StatusCode.UNAVAILABLE, message)


class StreamLedger:
    """Decides which image to send, which to send again, and which outcome to yield next.

    Every image gets exactly one outcome, and outcomes are yielded in the order of the images. An
    image is sent again after a retryable error. After a retryable break of the stream all images
    in flight are sent again, and the breaks since the last answer count as attempts: when they
    are used up, every image that was taken and not answered fails, and the count starts anew.

    A stream that breaks for another reason (for instance a message over the size limit) breaks
    because of one image. The images in flight are then sent again one by one, until the stream
    breaks with a single image in flight: that image gets the error.

    It is not safe for threads. Times are seconds of any monotonic clock.

    Args:
        policy: Decides when to retry.
        max_in_flight: Most images that are taken and not yet yielded.
        timeout_s: Longest time without any answer or progress, in seconds.
        report_progress: Whether to request progress.
        request_id: The ``request_id`` of the errors.

    Raises:
        ValueError: max_in_flight is not positive.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        max_in_flight: int,
        timeout_s: float,
        report_progress: bool = False,
        request_id: str | None = None,
    ) -> None:
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, not {max_in_flight}")
        self._policy = policy
        self._max_in_flight = max_in_flight
        self._timeout_s = timeout_s
        self._report_progress = report_progress
        self._request_id = request_id

        self._taken = self._yielded = 0
        self._unanswered: dict[int, _Unanswered] = {}
        self._waiting: list[tuple[float, int]] = []  # a heap of (not before, image)
        self._in_flight: dict[str, int] = {}  # by correlation id
        self._suspects: set[int] = set()
        self._outcomes: dict[int, Outcome] = {}

        self._breaks = 0
        self._paused_until = _AT_ONCE
        self._active_at = _AT_ONCE
        self._ended = False
        self.input_error: BaseException | None = None

    # Input.

    @property
    def has_room(self) -> bool:
        """Whether another image may be taken from the input."""
        return self._taken - self._yielded < self._max_in_flight

    def take(self, source: ImageInput, request: pb.ExplainImageRequest, now: float) -> None:
        """Takes the next image and its request."""
        if not self._unanswered:
            self._active_at = now
        self._unanswered[self._taken] = _Unanswered(source, request)
        self._wait(self._taken, _AT_ONCE)
        self._taken += 1

    def take_failed(self, source: ImageInput, error: ImageError) -> None:
        """Takes the next image, which cannot be sent, and its error."""
        self._outcomes[self._taken] = Failed(source, error)
        self._taken += 1

    def end_input(self, error: BaseException | None = None) -> None:
        """Notes that there are no more images, and the error of the iterable if it raised one."""
        self._ended = True
        self.input_error = error

    # The wire.

    @property
    def all_answered(self) -> bool:
        """Whether the input has ended and every image is answered."""
        return self._ended and not self._unanswered

    def due_in_s(self, now: float) -> float | None:
        """Returns the seconds until the next request is due; None: an event must come first."""
        if not self._waiting or (self._suspects and self._in_flight):
            return None
        return max(0.0, self._paused_until - now, self._waiting[0][0] - now)

    def next_request(self, now: float) -> pb.StreamExplainImagesRequest | None:
        """Returns a request to send now, which is then in flight; None if no request is due."""
        if self.due_in_s(now) != 0:
            return None
        _, image = heapq.heappop(self._waiting)
        correlation_id = str(image)
        self._in_flight[correlation_id] = image
        return pb.StreamExplainImagesRequest(
            correlation_id=correlation_id,
            request=self._unanswered[image].request,
            report_progress=self._report_progress,
        )

    def answered(self, answer: pb.StreamExplainImagesResponse, now: float) -> Progress | None:
        """Notes an answer. An answer to a request that is not in flight is ignored.

        Returns:
            The progress, if the answer is a report of progress, or None.
        """
        image = self._in_flight.get(answer.correlation_id)
        if image is None:
            return None
        self._active_at = now
        self._breaks = 0
        if answer.HasField("progress"):
            progress = answer.progress
            return Progress(
                self._unanswered[image].source,
                progress.completed_pass_count,
                progress.total_pass_count,
            )
        del self._in_flight[answer.correlation_id]
        if answer.HasField("response"):
            source = self._unanswered[image].source
            self._settle(image, ImageExplanation.from_response(answer.response, source))
            return None
        error = from_status(answer.error)
        entry = self._unanswered[image]
        entry.failures += 1
        pause_s = self._policy.pause_s(error, entry.failures, self._timeout_s)
        if pause_s is None:
            self._settle(image, error)
        else:
            self._wait(image, now + pause_s)
        return None

    def broke(self, error: GradCamError, now: float, available_in_s: float = math.inf) -> None:
        """Notes that the stream ended; if every image is answered, it is no failure.

        Args:
            error: The error that ended the stream.
            now: The time.
            available_in_s: As in ``RetryPolicy.pause_s``.
        """
        lost = set(self._in_flight.values())
        self._in_flight.clear()
        if not self._unanswered:
            return
        self._breaks += 1
        remaining_s = self._active_at + self._timeout_s - now
        pause_s = self._policy.pause_s(error, self._breaks, remaining_s, available_in_s)
        if pause_s is not None:
            self._paused_until = now + pause_s
        elif error.retryable or not lost:
            self._fail_all(error)
        elif len(lost) == 1:
            self._settle(lost.pop(), error)
        else:
            self._suspects |= lost
        for image in lost & self._unanswered.keys():
            self._wait(image, _AT_ONCE)

    def expires_in_s(self, now: float) -> float | None:
        """Returns the seconds until the timeout; None if no answer is awaited."""
        if not self._unanswered:
            return None
        return max(0.0, self._active_at + self._timeout_s - now)

    def expire(self) -> None:
        """Fails all unanswered images because of the timeout."""
        message = f"no answer for {self._timeout_s:g} s"
        self._fail_all(DeadlineExceededError(grpc.StatusCode.DEADLINE_EXCEEDED, message))

    # Output.

    @property
    def all_yielded(self) -> bool:
        """Whether the input has ended and every outcome was yielded."""
        return self._ended and self._yielded == self._taken

    def next_outcome(self) -> Outcome | None:
        """Returns the next outcome in the order of the images, or None if it is not known yet."""
        outcome = self._outcomes.pop(self._yielded, None)
        if outcome is not None:
            self._yielded += 1
        return outcome

    def _wait(self, image: int, not_before: float) -> None:
        heapq.heappush(self._waiting, (not_before, image))

    def _settle(self, image: int, answer: ImageExplanation | GradCamError) -> None:
        source = self._unanswered.pop(image).source
        self._suspects.discard(image)
        if isinstance(answer, GradCamError):
            answer.request_id = self._request_id
            self._outcomes[image] = Failed(source, answer)
        else:
            self._outcomes[image] = Explained(source, answer)

    def _fail_all(self, error: GradCamError) -> None:
        for image in tuple(self._unanswered):
            self._settle(image, error)
        self._waiting.clear()
        self._in_flight.clear()
        self._breaks = 0
        self._paused_until = _AT_ONCE
