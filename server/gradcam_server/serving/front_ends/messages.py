"""What the first front end and the others tell each other, framed as ``engine_process.messages``.

to another     Begin -> [Join] -> Listen -> Announce, Join, ... -> Drain -> CutOff
to the first            Joined    Listening | Failed, Beat, ...    exit status
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gradcam_server.config.settings import ServeConfig

BEAT_S = 0.25

# To another.


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message.

    Attributes:
        config: The settings that need a restart.
        number: From 1 on; one that takes the place of another has its number.
        metrics: Folder for the files of its counters.
    """

    config: ServeConfig
    number: int
    metrics: str


@dataclass(frozen=True, slots=True)
class Join:
    """Ask this engine from now on; connection and memory are at the door.

    Attributes:
        config: The settings that it was started with.
        engine: Which it is, in the order of their starts.
        started_in_s: How long it took to start, in seconds.
    """

    config: ServeConfig
    engine: int
    started_in_s: float


@dataclass(frozen=True, slots=True)
class Listen:
    """Bind this port, too."""

    port: int


@dataclass(frozen=True, slots=True)
class Announce:
    """All front ends let requests in: health may say so."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Let no more requests in, answer those in work, end."""


@dataclass(frozen=True, slots=True)
class CutOff:
    """End the drain at once."""


# To the first.


@dataclass(frozen=True, slots=True)
class Listening:
    """The port is bound."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It cannot begin, or not listen; it ends."""

    message: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Requests are answered by this engine from now on, unless it is lost already."""

    engine: int


@dataclass(frozen=True, slots=True)
class Beat:
    """Sent a few times in a second.

    Attributes:
        queue_lengths: Requests admitted and not yet on the device, by queue.
        in_work: Requests in work.
        resident_bytes: Memory of the process.
        threads: Those that decode or render, by state.
        held: Bytes that requests in work hold, by state.
    """

    queue_lengths: Mapping[str, int]
    in_work: int
    resident_bytes: int
    threads: Mapping[str, int]
    held: Mapping[str, int]
