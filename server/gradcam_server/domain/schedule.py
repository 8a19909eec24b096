"""When an item must be computed, and the report of its batch."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

Output = TypeVar("Output")


class DispatchReason(StrEnum):
    """Why a batch was dispatched to the device."""

    FULL = "full"  # it had the maximum size
    DELAY = "delay"  # its oldest item had waited for max_queue_delay
    IDLE = "idle"  # the device was free, and the delay is 0


OnDispatch = Callable[[], None]
"""Called when an item leaves the queue for the device."""


class Urgency(NamedTuple):
    """When an item must be computed.

    Attributes:
        priority: 1 goes first.
        deadline: Time of ``perf_counter`` after which the answer is useless; None is never.
        start_by: Time of ``perf_counter`` by which the item must leave the queue; None is never.
        caller: The caller whose share of the devices' time it uses.
    """

    priority: int = 1
    deadline: float | None = None
    start_by: float | None = None
    caller: str = ""


@dataclass(frozen=True)
class BatchReport:
    """A batch that ran.

    Attributes:
        size: Items.
        padded_size: The batch size that ran.
        reason: Why it was dispatched.
        compute_us: Time that it took, in microseconds.
        device: The index of its device; 0 is the first, or all of the only device.
    """

    size: int
    padded_size: int
    reason: DispatchReason
    compute_us: int
    device: int = 0


class Answer(NamedTuple, Generic[Output]):
    """The output for one item.

    Attributes:
        output: The output.
        batch: The batch that held the item.
        compile_us: Time that the item waited until its runner was compiled, in microseconds.
    """

    output: Output
    batch: BatchReport
    compile_us: int = 0
