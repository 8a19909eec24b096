"""The messages between the first front end and the others, framed as ``engine.ipc.messages``.

to another     Begin -> [Join] -> Listen -> Announce, Join, Probed, ... -> Drain -> CutOff
to the first            Joined    Listening | Failed, Heartbeat, Probe, ...    exit status
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gradcam_server.config.settings import ServeConfig
from gradcam_server.transport.http.probe_answer import ProbeAnswer

HEARTBEAT_S = 0.25

# To another.


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message.

    Attributes:
        config: The settings that need a restart.
        number: The number of the front end, from 1 on; a replacement has the same number.
        metrics: The folder for the files of its counters.
    """

    config: ServeConfig
    number: int
    metrics: str


@dataclass(frozen=True, slots=True)
class Join:
    """Use this engine from now on; the descriptors of its connection and memory were sent.

    Attributes:
        config: The settings of the engine.
        engine: The number of the engine, in the order of their starts.
        started_in_s: How long the engine took to start, in seconds.
    """

    config: ServeConfig
    engine: int
    started_in_s: float


@dataclass(frozen=True, slots=True)
class Listen:
    """Bind these ports, too.

    Attributes:
        port: The gRPC port.
        http_port: The HTTP port; None if there is none.
    """

    port: int
    http_port: int | None = None


@dataclass(frozen=True, slots=True)
class Announce:
    """All front ends admit requests: report SERVING by grpc.health.v1."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Refuse new requests, answer those in work, end."""


@dataclass(frozen=True, slots=True)
class CutOff:
    """End the drain at once."""


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to a ``Probe`` with this number."""

    number: int
    answer: ProbeAnswer


# To the first.


@dataclass(frozen=True, slots=True)
class Listening:
    """The port is bound."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The front end cannot begin or listen; it ends."""

    message: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Requests go to this engine from now on, unless it is lost already."""

    engine: int


@dataclass(frozen=True, slots=True)
class Probe:
    """A client of the HTTP port has asked for the metrics or the state of the whole server.

    Attributes:
        number: Numbers the probes of the front end.
        path: One of ``probes.PATHS``.
        accept: The header Accept.
    """

    number: int
    path: str
    accept: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The state of the front end, sent a few times per second.

    Attributes:
        queue_lengths: Requests admitted and not yet on the device, by queue.
        in_work: Requests in work.
        resident_bytes: Memory of the process, in bytes.
        threads: Threads that decode or render, by state.
        held: Bytes that requests in work hold, by state.
    """

    queue_lengths: Mapping[str, int]
    in_work: int
    resident_bytes: int
    threads: Mapping[str, int]
    held: Mapping[str, int]
