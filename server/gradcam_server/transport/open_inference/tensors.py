"""Reads the images of a request from its input tensor."""

import math
from collections.abc import Sequence

from gradcam.inference import grpc_service_pb2 as pb
from gradcam_server.domain.requests import RawImage
from gradcam_server.errors import InvalidRequestError

IMAGE = "image"
ENCODED_IMAGE = "encoded_image"
MAX_IMAGES = 64
"""Max images of one request."""

_DATATYPES = {IMAGE: "UINT8", ENCODED_IMAGE: "BYTES"}
_CONTENTS = {IMAGE: "uint_contents", ENCODED_IMAGE: "bytes_contents"}
_LENGTH_BYTES = 4


def read_images(message: pb.ModelInferRequest) -> list[bytes | RawImage]:
    """Reads the images of a request.

    ``image`` holds pixels: UINT8 RGB, shape [height, width, 3] or [images, height, width, 3].
    ``encoded_image`` holds files: BYTES, shape [images] or [images, 1]. The elements are in
    ``raw_input_contents``, row-major, each of BYTES after its length in 4 bytes
    (little-endian); or in ``contents``.

    Returns:
        1 to ``MAX_IMAGES`` images. Files are not decoded or checked.

    Raises:
        InvalidRequestError: There is not exactly one input, or its name, datatype, shape or
            elements are wrong.
    """
    tensor = _only_input(message)
    raw = _raw_contents(message, tensor)
    if tensor.name == IMAGE:
        return list(_pixels(tensor, raw))
    return list(_files(tensor, raw))


def decode_bytes(data: bytes) -> list[bytes]:
    """Splits serialized BYTES: each element follows its length, 4 bytes little-endian.

    Raises:
        InvalidRequestError: The data end within an element.
    """
    elements: list[bytes] = []
    start = 0
    while start < len(data):
        begin = start + _LENGTH_BYTES
        length = int.from_bytes(data[start:begin], "little")
        if begin + length > len(data):
            raise InvalidRequestError(
                "raw_input_contents",
                f"BYTES element {len(elements)} is cut off: {len(data) - start} bytes are left "
                f"for its length ({_LENGTH_BYTES} bytes) and its content",
            )
        elements.append(data[begin : begin + length])
        start = begin + length
    return elements


def _only_input(message: pb.ModelInferRequest) -> pb.ModelInferRequest.InferInputTensor:
    either = f"exactly one input is needed: {IMAGE!r} or {ENCODED_IMAGE!r}"
    if len(message.inputs) != 1:
        raise InvalidRequestError("inputs", f"the request has {len(message.inputs)}; {either}")
    (tensor,) = message.inputs
    if tensor.name not in _DATATYPES:
        raise InvalidRequestError("inputs.name", f"unknown input {tensor.name!r}; {either}")
    if tensor.datatype != _DATATYPES[tensor.name]:
        raise InvalidRequestError(
            "inputs.datatype",
            f"input {tensor.name!r} has datatype {tensor.datatype!r}; it must be "
            f"{_DATATYPES[tensor.name]}",
        )
    if tensor.parameters:
        raise InvalidRequestError(
            "inputs.parameters",
            f"input {tensor.name!r} has parameters ({', '.join(sorted(tensor.parameters))}); "
            "an input has none here: shared memory is not supported",
        )
    return tensor


def _raw_contents(
    message: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor
) -> bytes | None:
    """Returns the raw elements, or None if they are in ``contents``."""
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    if not message.raw_input_contents:
        if fields not in ([], [_CONTENTS[tensor.name]]):
            raise InvalidRequestError(
                "inputs.contents",
                f"input {tensor.name!r} has {', '.join(fields)}; {tensor.datatype} elements "
                f"belong in {_CONTENTS[tensor.name]} or raw_input_contents",
            )
        return None
    if fields:
        raise InvalidRequestError(
            "raw_input_contents",
            "both contents and raw_input_contents are set; choose one",
        )
    if len(message.raw_input_contents) != 1:
        raise InvalidRequestError(
            "raw_input_contents",
            f"{len(message.raw_input_contents)} raw_input_contents for 1 input; there must be 1",
        )
    return message.raw_input_contents[0]


def _pixels(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Sequence[RawImage]:
    count, height, width = _image_shape(tensor)
    size = height * width * 3
    elements = tensor.contents.uint_contents
    found = len(elements) if raw is None else len(raw)
    if found != count * size:
        raise _mismatch(tensor, found, count * size)
    if raw is None:
        try:
            raw = bytes(elements)
        except ValueError:
            raise InvalidRequestError(
                "inputs.contents", f"{IMAGE!r} has an element over 255, the maximum of UINT8"
            ) from None
    if count == 1:
        return [RawImage(raw, height, width)]
    parts = (raw[start : start + size] for start in range(0, len(raw), size))
    return [RawImage(part, height, width) for part in parts]


def _image_shape(tensor: pb.ModelInferRequest.InferInputTensor) -> tuple[int, int, int]:
    count, *size = tensor.shape if len(tensor.shape) == 4 else (1, *tensor.shape)
    if len(size) != 3 or size[2] != 3 or min(size) < 1 or not 1 <= count <= MAX_IMAGES:
        raise _bad_shape(tensor, "[height, width, 3] or [images, height, width, 3]")
    return count, size[0], size[1]


def _files(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Sequence[bytes]:
    if len(tensor.shape) not in (1, 2) or list(tensor.shape[1:]) not in ([], [1]):
        raise _bad_shape(tensor, "[images] or [images, 1]")
    count = math.prod(tensor.shape)
    if not 1 <= count <= MAX_IMAGES:
        raise _bad_shape(tensor, "[images] or [images, 1]")
    files = tensor.contents.bytes_contents if raw is None else decode_bytes(raw)
    if len(files) != count:
        raise _mismatch(tensor, len(files), count)
    return files


def _bad_shape(tensor: pb.ModelInferRequest.InferInputTensor, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(
        "inputs.shape",
        f"input {tensor.name!r} has shape {list(tensor.shape)}; it must be {allowed}, of 1 to "
        f"{MAX_IMAGES} images",
    )


def _mismatch(
    tensor: pb.ModelInferRequest.InferInputTensor, found: int, expected: int
) -> InvalidRequestError:
    return InvalidRequestError(
        "inputs",
        f"input {tensor.name!r} has {found} elements; its shape {list(tensor.shape)} needs "
        f"{expected}",
    )
