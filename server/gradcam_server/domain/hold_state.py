"""The uses of memory that requests hold: values of the label of gradcam_held_bytes."""

from enum import StrEnum


class HoldState(StrEnum):
    """A use of memory that a request holds."""

    RECEIVED = "received"
    DECODING = "decoding"
    WAITING = "waiting"
    RENDERING = "rendering"
    SENDING = "sending"

    # The hash of Enum runs in Python, and states are keys of counts for each image.
    __hash__ = str.__hash__
