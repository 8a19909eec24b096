"""What bytes of a request are held for: the values of a metric's label."""

from enum import StrEnum


class HoldState(StrEnum):
    """What bytes are held for."""

    RECEIVED = "received"
    DECODING = "decoding"
    WAITING = "waiting"
    RENDERING = "rendering"
    SENDING = "sending"

    # Enum's own runs in Python, and states are keys of what is counted for each image.
    __hash__ = str.__hash__
