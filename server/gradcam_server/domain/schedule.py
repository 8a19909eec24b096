"""When an item must be computed, and the report of the batch that computed it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

Output = TypeVar("Output")


class DispatchReason(StrEnum):
    """Why a batch went to the device when it did."""

    FULL = "full"  # no more would have fitted
    DELAY = "delay"  # its oldest item had waited long enough for more
    IDLE = "idle"  # the device was free, and there is no delay


OnDispatch = Callable[[], None]
"""Called when an item leaves the queue for the device."""


@dataclass(frozen=True)
class Urgency:
    """When an item must be computed.

    Attributes:
        priority: 1 goes first.
        deadline: Time of ``perf_counter`` at which its answer is of no more use.
        start_by: Time at which it has waited too long.
        caller: Whose share of the devices' time it uses.
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
        padded_size: The size that ran.
        reason: Why it went when it did.
        compute_us: Time it took, in microseconds.
        device: Where it ran; 0 is the first, or all of the only one.
    """

    size: int
    padded_size: int
    reason: DispatchReason
    compute_us: int
    device: int = 0


@dataclass(frozen=True)
class Answer(Generic[Output]):
    """The output for one item.

    Attributes:
        output: The output.
        batch: The batch that held the item.
        compile_us: Time that the item waited until its runner was compiled, in microseconds.
    """

    output: Output
    batch: BatchReport
    compile_us: int = 0
