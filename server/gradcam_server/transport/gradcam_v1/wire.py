"""Reads requests without copying their pixels.

protobuf copies an image when it parses the message, and again when the field is read. Here the
image is a view of the received bytes, and protobuf parses only the options beside it: once for all
requests that have the same options. Raw images of one size, with the same options, are found by
comparing the bytes around their pixels with those of an earlier request.
"""

from functools import lru_cache
from typing import NamedTuple

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.domain.requests import RawImage


class ReceivedRequest(NamedTuple):
    """An ``ExplainImageRequest``.

    Attributes:
        image: Its image.
        options: All other fields, serialized.
        model: The field of this name; and so are the next.
        model_version: The version of the model.
        include_logits: Whether the answer has logits.
    """

    image: bytes | RawImage
    options: bytes
    model: str
    model_version: str
    include_logits: bool


class ReceivedItem(NamedTuple):
    """A ``StreamExplainImagesRequest``, whose fields have these names."""

    correlation_id: str
    request: ReceivedRequest
    report_progress: bool


class _Field(NamedTuple):
    """A field of bytes in a serialized message: its key, its place, and the other fields."""

    key: int
    start: int
    end: int
    others: bytes


class _Layout(NamedTuple):
    """Requests that differ only in their pixels: the bytes around these, and what they say.

    Attributes:
        before: The bytes before the pixels.
        after: The bytes after the pixels.
        size: The image's height and width.
        options: The fields of ``ReceivedRequest`` beside the image.
    """

    before: bytes
    after: bytes
    size: tuple[int, int]
    options: tuple[bytes, str, str, bool]

    def fits(self, data: bytes, start: int, end: int) -> bool:
        """Returns whether this part of ``data``, of the right length, is such a request."""
        return data.startswith(self.before, start, end) and data.endswith(self.after, start, end)


def _key(message: type, name: str) -> int:
    """Returns the key of a field of bytes on the wire: its number and its wire type, 2."""
    return message.DESCRIPTOR.fields_by_name[name].number << 3 | 2  # type: ignore[attr-defined]


_REQUEST = {_key(pb.StreamExplainImagesRequest, "request")}
_ENCODED = _key(pb.ExplainImageRequest, "encoded_image")
_IMAGES = {_ENCODED, _key(pb.ExplainImageRequest, "raw_image")}
_PIXELS = {_key(pb.RawImage, "data")}
_MAX_VARINT_BYTES = 10
# Longer options are rare, and would take memory when they are remembered.
_MAX_REMEMBERED_BYTES = 4096
# The latest layouts, by a request's length and its first bytes.
_LAYOUT_KEY_BYTES, _MAX_LAYOUTS = 16, 256
_layouts: dict[tuple[int, bytes], _Layout] = {}


def parse_request(data: bytes) -> pb.ExplainImageRequest | ReceivedRequest:
    """Reads a request; by protobuf, if it is not as the clients of protobuf write it.

    Raises:
        google.protobuf.message.DecodeError: It is no such message.
    """
    return _receive(data, 0, len(data)) or pb.ExplainImageRequest.FromString(data)


def parse_item(data: bytes) -> pb.StreamExplainImagesRequest | ReceivedItem:
    """Reads a message of a stream; by protobuf, if it is not as the clients of protobuf write it.

    Raises:
        google.protobuf.message.DecodeError: It is no such message.
    """
    field = _find(data, 0, len(data), _REQUEST)
    request = None if field is None else _receive(data, field.start, field.end)
    if field is None or request is None:
        return pb.StreamExplainImagesRequest.FromString(data)
    others = pb.StreamExplainImagesRequest.FromString(field.others)
    return ReceivedItem(others.correlation_id, request, others.report_progress)


def _receive(data: bytes, start: int, end: int) -> ReceivedRequest | None:
    key = end - start, data[start : start + _LAYOUT_KEY_BYTES]
    layout = _layouts.get(key)
    if layout is None or not layout.fits(data, start, end):
        field = _find(data, start, end, _IMAGES)
        if field is None or len(field.others) > _MAX_REMEMBERED_BYTES:
            return None
        options = field.others, *_parse_options(field.others)
        if field.key == _ENCODED:
            return ReceivedRequest(data[field.start : field.end], *options)
        pixels = _find(data, field.start, field.end, _PIXELS)
        if pixels is None or len(pixels.others) > _MAX_REMEMBERED_BYTES:
            return None
        before, after = data[start : pixels.start], data[pixels.end : end]
        layout = _Layout(before, after, _parse_size(pixels.others), options)
        if len(_layouts) == _MAX_LAYOUTS:
            del _layouts[next(iter(_layouts))]
        _layouts[key] = layout
    pixels_end = end - len(layout.after)
    view = memoryview(data)[start + len(layout.before) : pixels_end]
    return ReceivedRequest(RawImage(view, *layout.size), *layout.options)


@lru_cache(maxsize=256)
def _parse_options(data: bytes) -> tuple[str, str, bool]:
    message = pb.ExplainImageRequest.FromString(data)
    return message.model, message.model_version, message.include_logits


def _parse_size(data: bytes) -> tuple[int, int]:
    message = pb.RawImage.FromString(data)
    return message.height_px, message.width_px


def _find(data: bytes, start: int, end: int, keys: set[int]) -> _Field | None:
    """Finds the only field with one of these keys in a part of ``data``, which is a message.

    Returns:
        The field; None if there is none or several, or if only protobuf knows whether the message
        is valid.
    """
    found: tuple[int, int, int, int] | None = None
    position = start
    try:
        while position < end:
            field_start = position
            key, position = _read_varint(data, position)
            match key & 7:
                case 2:
                    length, position = _read_varint(data, position)
                    field_end = position + length
                case 0:
                    _, field_end = _read_varint(data, position)
                case 1:
                    field_end = position + 8
                case 5:
                    field_end = position + 4
                case _:
                    return None
            if key in keys:
                if found is not None:
                    return None
                found = key, field_start, position, field_end
            position = field_end
    except (IndexError, OverflowError):
        return None
    if found is None or position != end:
        return None
    key, field_start, value_start, field_end = found
    return _Field(key, value_start, field_end, data[start:field_start] + data[field_end:end])


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns a number and the position behind it.

    Raises:
        IndexError: The data end within it.
        OverflowError: It is too long.
    """
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    for end in range(position + 1, position + _MAX_VARINT_BYTES):
        byte = data[end]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, end + 1
        shift += 7
    raise OverflowError
