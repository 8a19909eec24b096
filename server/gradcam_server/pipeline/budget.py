"""The memory that a request may need, and the memory that all requests together may hold.

Only memory that lasts while a request waits is counted. Decoding and rendering take more for a
moment, on a worker's thread, so the number of threads bounds that (docs/operations.md has the sum).
"""

from collections.abc import Sequence
from typing import NamedTuple

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.requests import ExplainRequest, HeatmapFormat, LayerFusion, RawImage
from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.render import RenderedMap, count_bytes
from gradcam_server.pipeline.translation import Resolved
from gradcam_server.telemetry.memory import available_bytes

BYTES_PER_PIXEL = 3

# A message is held as gRPC's bytes, as the parsed message, and as the bytes of its image.
_MESSAGE_COPIES = 3
# An answer is held as heat maps and their message, then as bytes and in gRPC's buffers.
_ANSWER_COPIES = 2
# The model's input, logits, predictions and the objects of a call.
_OVERHEAD_BYTES = 1 << 18
# One part in so many of the server's memory. The rest is for the engine, threads and receiving.
_SHARE = 4
_FLOAT32_BYTES = 4


def message_bytes(image_bytes: int) -> int:
    """Returns the bytes that a message with an image holds."""
    return _MESSAGE_COPIES * image_bytes


def echoed_bytes(length: int) -> int:
    """Returns the bytes that a text holds in a message and in its answer."""
    return (_MESSAGE_COPIES + _ANSWER_COPIES) * length


def sending_bytes(image_bytes: int, heatmap_bytes: int) -> int:
    """Returns the bytes that a request holds once its heat maps are rendered."""
    return message_bytes(image_bytes) + _OVERHEAD_BYTES + _ANSWER_COPIES * heatmap_bytes


class Need(NamedTuple):
    """The bytes that an image and its answer may hold.

    Attributes:
        image: Bytes of the image as it was sent.
        pixels: Bytes of the decoded image, if it is kept.
        heatmaps: Bytes of all heat maps.
    """

    image: int
    pixels: int
    heatmaps: int

    @property
    def total(self) -> int:
        """The maximum, before the request is answered."""
        return self.pixels + sending_bytes(self.image, self.heatmaps)


def image_bytes(request: ExplainRequest) -> int:
    """Returns the length of a request's image as it was sent."""
    image = request.image
    return len(image.data if isinstance(image, RawImage) else image)


def answer_bytes(request: ExplainRequest, rendered: Sequence[RenderedMap]) -> int:
    """Returns the bytes that a request with its rendered maps holds."""
    heatmaps = sum(len(heatmap.data) for one in rendered for heatmap in one.heatmaps)
    return sending_bytes(image_bytes(request), heatmaps)


def heatmap_bytes(
    request: ExplainRequest, resolved: Resolved, pixel_count: int, max_answer_bytes: int
) -> int:
    """Returns the bytes that all heat maps may take, with those of the layers' size.

    Args:
        request: The request.
        resolved: Its model, layers and classes.
        pixel_count: The pixels of its image; 0 if no map has the image's size.
        max_answer_bytes: The maximum, of maps of the image's size.

    Raises:
        InvalidRequestError: The heat maps may take more.
    """
    fuses = request.layer_fusion is not LayerFusion.NONE
    maps = len(resolved.targets) * (1 if fuses else len(resolved.layers))
    if (size := maps * count_bytes(pixel_count, request.forms)) > max_answer_bytes:
        raise InvalidRequestError(
            "heatmaps",
            f"{maps} heat maps of {pixel_count:,} pixels in {len(request.forms)} forms may take "
            f"{size:,} bytes; an answer may have {max_answer_bytes:,} here: ask for fewer classes, "
            "layers or forms, for maps at the layer's resolution (raw), or send a smaller "
            "image",
        )
    # As the graph gives them, and in each form of the layer's size.
    copies = 1 + sum(form.format is HeatmapFormat.RAW_FLOAT32 for form in request.forms)
    return size + maps * resolved.map_size * copies * _FLOAT32_BYTES


def max_held_bytes(config: ServeConfig) -> int:
    """Returns the bytes that the requests of one front end may hold together.

    By default they are enough for any one request.

    Args:
        config: The settings of the front end, with its part of divided limits.
    """
    if config.max_held_bytes is not None:
        return config.max_held_bytes
    worst = Need(
        config.max_message_bytes,
        BYTES_PER_PIXEL * config.max_image_pixels,
        config.max_answer_bytes,
    )
    return max(available_bytes() // _SHARE // config.frontends, worst.total)
