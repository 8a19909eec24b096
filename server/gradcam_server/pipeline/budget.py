"""What a request may need of the server's memory, and how much all requests together may hold.

Counted is what lasts while a request waits. What decoding and rendering take beside that is on a
worker's thread, so that their number bounds it (docs/operations.md has the sum).
"""

from dataclasses import dataclass

from gradcam_server.config.settings import ServeConfig
from gradcam_server.telemetry.memory import available_bytes

BYTES_PER_PIXEL = 3

# A message is held as gRPC's bytes, parsed, and as the bytes of its image.
_MESSAGE_COPIES = 3
# An answer is held as heat maps and their message, then as bytes and in gRPC's buffers.
_ANSWER_COPIES = 2
# The model's input, logits, predictions and the objects of a call.
_OVERHEAD_BYTES = 1 << 18
# Of the memory that the server may have. The rest is for the engine, threads and what is received.
_SHARE = 4


def message_bytes(image_bytes: int) -> int:
    """Returns what a message with an image of so many bytes holds."""
    return _MESSAGE_COPIES * image_bytes


def echoed_bytes(length: int) -> int:
    """Returns what a text of so many characters holds in a message and in its answer."""
    return (_MESSAGE_COPIES + _ANSWER_COPIES) * length


def sending_bytes(image_bytes: int, heatmap_bytes: int) -> int:
    """Returns what a request holds once its heat maps are rendered."""
    return message_bytes(image_bytes) + _OVERHEAD_BYTES + _ANSWER_COPIES * heatmap_bytes


@dataclass(frozen=True)
class Need:
    """What one image and its answer may hold, in bytes.

    Attributes:
        image: Of the image as it was sent.
        pixels: Of the decoded image, if it is kept.
        heatmaps: Of all heat maps.
    """

    image: int
    pixels: int
    heatmaps: int

    @property
    def total(self) -> int:
        """All that it may hold, before it is answered."""
        return self.pixels + sending_bytes(self.image, self.heatmaps)


def max_held_bytes(config: ServeConfig) -> int:
    """Returns how much the requests of one front end may hold together.

    By default it is enough for any one request.

    Args:
        config: The settings: its part of limits that several share.
    """
    if config.max_held_bytes is not None:
        return config.max_held_bytes
    worst = Need(
        config.max_message_bytes,
        BYTES_PER_PIXEL * config.max_image_pixels,
        config.max_answer_bytes,
    )
    return max(available_bytes() // _SHARE // config.frontends, worst.total)
