"""Requests on the wire: what protobuf reads, whoever has written it."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.domain.requests import ExplainRequest, RawImage
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.gradcam_v1 import wire
from gradcam_server.transport.gradcam_v1.convert import to_request
from gradcam_server.transport.gradcam_v1.wire import (
    ReceivedItem,
    ReceivedRequest,
    parse_item,
    parse_request,
)

RAW = pb.RawImage(data=bytes(range(200)) * 3, height_px=10, width_px=20)
MESSAGES = {
    "raw": pb.ExplainImageRequest(raw_image=RAW),
    "encoded": pb.ExplainImageRequest(encoded_image=b"\xff\xd8 a file"),
    "options": pb.ExplainImageRequest(
        model="m",
        raw_image=RAW,
        targets=[pb.Target(class_index=3), pb.Target(class_name="cat", against_class_index=0)],
        layers=["a", "b/c"],
        method=pb.METHOD_LAYER_CAM,
        heatmaps=[pb.HeatmapRequest(format=pb.HEATMAP_FORMAT_GRAY_PNG, alpha=0.25)],
        prediction_count=0,
        include_logits=True,
        smooth_grad=pb.SmoothGrad(sample_count=3, noise_level=0.5),
        model_version="2",
        priority=7,
    ),
    "after the image": pb.ExplainImageRequest(encoded_image=b"", top_k=0, pass_count=300),
}
FIELD = pb.ExplainImageRequest(raw_image=RAW).SerializeToString()
BIG = pb.ExplainImageRequest(encoded_image=b"x", layers=["l" * 5000]).SerializeToString()
ODD = {
    "no image": pb.ExplainImageRequest(model="m").SerializeToString(),
    "empty": b"",
    "two images": FIELD + MESSAGES["encoded"].SerializeToString(),
    "two images, the other way": MESSAGES["encoded"].SerializeToString() + FIELD,
    "an image in two parts": FIELD
    + pb.ExplainImageRequest(raw_image=pb.RawImage(height_px=30)).SerializeToString(),
    "an image without pixels": pb.ExplainImageRequest(
        raw_image=pb.RawImage(height_px=1)
    ).SerializeToString(),
    "unknown fields": FIELD + b"\xf8\x7f\x01" + b"\xf9\x7f12345678" + b"\xfd\x7f1234",
    "an unknown group": FIELD + b"\xfb\x7f\x08\x01\xfc\x7f",
    "a key in two bytes": b"\x92\x00"
    + b"\x01x"
    + pb.ExplainImageRequest(model="m").SerializeToString(),
    "the type of another field": FIELD + b"\x10\x05",
    "many options": BIG,
}


def parse(data: bytes) -> ExplainRequest | str:
    """Returns the request, with its pixels as bytes, or the error."""
    return outcome(lambda: parse_request(data))


def outcome(read: object) -> ExplainRequest | str:
    try:
        request = to_request(read())  # type: ignore[operator]
    except (DecodeError, InvalidRequestError) as error:
        return type(error).__name__
    image = request.image
    if isinstance(image, RawImage):
        image = RawImage(bytes(image.data), image.height, image.width)
    return ExplainRequest(**{**vars(request), "image": image})


def by_protobuf(data: bytes) -> ExplainRequest | str:
    return outcome(lambda: pb.ExplainImageRequest.FromString(data))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_request_is_read_without_copying_its_pixels(name: str) -> None:
    """Its image is a view of the message, and all else is what protobuf reads."""
    message = MESSAGES[name]
    data = message.SerializeToString()
    received = parse_request(data)
    assert isinstance(received, ReceivedRequest)
    assert parse(data) == by_protobuf(data)
    assert (received.model, received.model_version) == (message.model, message.model_version)
    assert received.include_logits == message.include_logits
    if isinstance(received.image, RawImage):
        pixels = np.frombuffer(received.image.data, np.uint8)
        assert np.may_share_memory(pixels, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("name", ODD)
def test_an_odd_request_is_read_as_protobuf_reads_it(name: str) -> None:
    """The last of two images counts, parts are merged, and unknown fields are ignored."""
    assert parse(ODD[name]) == by_protobuf(ODD[name])


@pytest.mark.parametrize("name", MESSAGES)
def test_damaged_requests_are_read_as_protobuf_reads_them(name: str) -> None:
    """Cut off anywhere, and with any byte near an end changed: never another request or error."""
    data = MESSAGES[name].SerializeToString()
    places = [*range(min(len(data), 60)), *range(max(len(data) - 60, 0), len(data))]
    for place in places:
        assert parse(data[:place]) == by_protobuf(data[:place])
        for byte in (0x00, 0x03, 0x0A, 0x12, 0x1A, 0x7F, 0x80, 0xFF):
            damaged = data[:place] + bytes([byte]) + data[place + 1 :]
            assert parse(damaged) == by_protobuf(damaged), (place, byte)


@pytest.mark.parametrize("name", ["raw", "options"])
def test_requests_that_are_nearly_alike_are_told_apart(name: str) -> None:
    """Whichever byte differs from the request that came before: in pixels, size or options."""
    data = MESSAGES[name].SerializeToString()
    for place in range(len(data)):
        other = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        for sent in (data, other, data):
            assert parse(sent) == by_protobuf(sent), place


def test_a_request_like_the_one_before_is_read_within_its_message() -> None:
    """Its pixels are its own, and the bytes around them are those of its message's part."""
    images = [bytes([number]) * 600 for number in range(3)]
    for number, pixels in enumerate(images):
        request = pb.ExplainImageRequest(
            model="m", raw_image=pb.RawImage(data=pixels, height_px=10, width_px=20), priority=3
        )
        item = pb.StreamExplainImagesRequest(correlation_id="x" * number, request=request)
        received = parse_item(item.SerializeToString())
        assert isinstance(received, ReceivedItem)
        read = to_request(received.request)
        assert isinstance(read.image, RawImage)
        assert (bytes(read.image.data), read.priority) == (pixels, 3)


def test_few_layouts_are_remembered() -> None:
    """A client cannot fill the memory with images of ever new sizes."""
    for width in range(1, 400):
        image = pb.RawImage(data=bytes(3 * width), height_px=1, width_px=width)
        parse_request(pb.ExplainImageRequest(raw_image=image).SerializeToString())
    assert len(wire._layouts) == wire._MAX_LAYOUTS


def test_messages_of_streams_are_read_as_protobuf_reads_them() -> None:
    """With and without an id, damaged or with two requests."""
    for request in MESSAGES.values():
        for item in (
            pb.StreamExplainImagesRequest(request=request),
            pb.StreamExplainImagesRequest(
                correlation_id="x" * 9000, request=request, report_progress=True
            ),
        ):
            data = item.SerializeToString()
            received = parse_item(data)
            assert isinstance(received, ReceivedItem)
            assert received.correlation_id == item.correlation_id
            assert received.report_progress == item.report_progress
            assert outcome(lambda received=received: received.request) == by_protobuf(
                request.SerializeToString()
            )
    for odd in (data + data, b"", data[:-3] + b"\xff\xff\xff"):
        try:
            expected = pb.StreamExplainImagesRequest.FromString(odd)
        except DecodeError:
            with pytest.raises(DecodeError):
                parse_item(odd)
        else:
            assert parse_item(odd) == expected


def test_only_short_options_are_remembered() -> None:
    """A client cannot fill the memory with options that nobody sends again."""
    before = wire._parse_options.cache_info().currsize
    parse_request(BIG)
    assert wire._parse_options.cache_info().currsize == before
