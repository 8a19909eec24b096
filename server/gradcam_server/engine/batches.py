"""What the policy of batching is about: runners, the items that wait for them, and batches."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gradcam_server.domain.fair_shares import Charge
from gradcam_server.domain.schedule import DispatchReason, Urgency
from gradcam_server.errors import DeadlineError, QueueFullError

_RETRY_AFTER_S = 0.5

Rank = tuple[bool, int]
"""Of a lane: whether it is in the background, and its priority; the smallest is most urgent."""


class Runner(Hashable, Protocol):
    """The properties of a compiled graph that the policy needs."""

    def plan(self, waiting: int, busy: float = 1.0) -> tuple[int, int]:
        """Returns how many of ``waiting`` items to take, and the padded size to run.

        ``busy`` is the part of the recent time in which the device had a batch, 0 to 1.
        """
        ...

    @property
    def background(self) -> bool:
        """Whether its batches leave the devices to others, but for their share."""
        ...

    @property
    def max_batch_size(self) -> int:
        """The maximum number of items in a batch."""
        ...

    @property
    def min_s(self) -> float:
        """Seconds that its quickest batch takes."""
        ...

    def expected_s(self, padded_size: int) -> float:
        """Seconds that a batch of a padded size is expected to take."""
        ...

    @property
    def depth(self) -> int:
        """How many batches may be in flight on a device while one of its batches is."""
        ...

    @property
    def device_count(self) -> int:
        """How many devices it can run on, counted from the first."""
        ...

    @property
    def has_streams(self) -> bool:
        """Whether the devices after the first are streams of the first."""
        ...


@dataclass(slots=True, eq=False)
class QueuedItem:
    """An item that waits.

    Attributes:
        urgency: When it must be computed.
        queued_at: When it was added.
        order: Its order among items of equal urgency; the smallest goes first. The scheduler
            sets it.
    """

    urgency: Urgency
    queued_at: float
    order: tuple[float, float] = field(default=(0.0, 0.0), init=False)

    @property
    def abandoned(self) -> bool:
        """Whether no caller waits for its output any more."""
        return False

    def expired(self, now: float, min_s: float) -> Exception | None:
        """Returns why the item is too late to compute in ``min_s`` seconds, or None."""
        deadline, start_by = self.urgency.deadline, self.urgency.start_by
        if deadline is not None and now + min_s > deadline:
            waited_ms, left_ms = (now - self.queued_at) * 1e3, max(deadline - now, 0) * 1e3
            return DeadlineError(
                f"the deadline cannot be met: after {waited_ms:.0f} ms in the queue "
                f"{left_ms:.0f} ms were left"
            )
        if start_by is not None and now > start_by:
            waited_ms = (now - self.queued_at) * 1e3
            message = f"still waiting after {waited_ms:.0f} ms in the queue; try again later"
            return QueueFullError(message, _RETRY_AFTER_S)
        return None


RunnerT = TypeVar("RunnerT", bound=Runner)
ItemT = TypeVar("ItemT", bound=QueuedItem)


@dataclass(frozen=True, slots=True)
class Batch(Generic[RunnerT, ItemT]):
    """A batch that goes to a device.

    Attributes:
        runner: Its runner.
        items: The items, in the order in which they go; at most ``padded_size``.
        padded_size: The batch size to run.
        device: The index of the device, on which it is in flight until ``finish``.
        reason: Why the batch goes now.
        rank: Among which lanes its callers have fair shares.
        charges: The device time charged to the caller of each item.
    """

    runner: RunnerT
    items: Sequence[ItemT]
    padded_size: int
    device: int
    reason: DispatchReason
    rank: Rank
    charges: Sequence[Charge]
