"""JSON and binary tensors of the Open Inference Protocol over HTTP, to and from its messages.

A body is a JSON object, and behind it the binary data of all tensors whose parameter
``binary_data_size`` says so, in their order. The header ``Inference-Header-Content-Length`` says
how long the JSON object is; without it, all of the body is JSON.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message

from gradcam.inference import grpc_service_pb2 as pb
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.http.documents import BODY, read_json, write_json
from gradcam_server.transport.http.kserve.json_values import (
    as_bool,
    as_integer,
    as_list,
    as_object,
    as_text,
    check_keys,
    decode_base64,
    flatten,
    kind,
    to_pixels,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that says how many bytes of a body are JSON."""

FIELDS = {
    "targets": "parameters.class",
    "layers": "parameters.layer",
    "encoded_image": "inputs.data",
    "raw_image.data": "inputs.data",
}
"""Names of fields, by the fields of gradcam.v1's proto file that errors name."""

MAX_JSON_ELEMENTS = 200_000
"""Max elements of an answer in JSON: writing them takes about 1 us for each, on the event loop."""

_MAX_INT64, _MAX_UINT64 = 2**63 - 1, 2**64 - 1
_MAX_DIGITS = 19
# The answer repeats it.
_MAX_ID_CHARS = 1000
_REQUEST_KEYS = ("id", "parameters", "inputs", "outputs", "model_name", "model_version")
_INPUT_KEYS = ("name", "shape", "datatype", "parameters", "data")
_OUTPUT_KEYS = ("name", "parameters")
_BASE64 = "base64"


@dataclass(frozen=True)
class InferCall:
    """A parsed request.

    Attributes:
        message: The request as over gRPC; its tensors are in ``raw_input_contents``.
        binary: For each requested output, whether it is to be binary; else it is JSON.
        binary_default: The same for outputs that are not in ``binary``.
    """

    message: pb.ModelInferRequest
    binary: Mapping[str, bool]
    binary_default: bool

    def is_binary(self, output: str) -> bool:
        """Returns whether the answer has this output as binary data."""
        return self.binary.get(output, self.binary_default)


def parse_request(
    body: bytes, header_length: str | None, model_name: str, model_version: str = ""
) -> InferCall:
    """Reads a request.

    Args:
        body: The body.
        header_length: The value of ``HEADER_LENGTH``; None if the request has no such header.
        model_name: The model's name in the path.
        model_version: The version in the path; empty if it has none.

    Raises:
        InvalidRequestError: It is not a request of the protocol. Whether its tensors are those
            of the model is left to ``open_inference/convert.py``.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    request = read_json(body[:length])
    check_keys(request, _REQUEST_KEYS, BODY)
    for key, value in (("model_name", model_name), ("model_version", model_version)):
        _check_same(request, key, value)
    message = pb.ModelInferRequest(
        model_name=model_name,
        model_version=model_version,
        id=_id(request.get("id")),
    )
    parameters = dict(as_object(request.get("parameters"), "parameters"))
    binary_default = as_bool(
        parameters.pop("binary_data_output", False), "parameters.binary_data_output"
    )
    _set_parameters(message.parameters, parameters, "parameters")
    binary_data = _BinaryData(body, length)
    for tensor in as_list(request.get("inputs"), "inputs"):
        _add_input(message, as_object(tensor, "inputs"), binary_data)
    binary_data.check_end()
    binary: dict[str, bool] = {}
    outputs = request.get("outputs")
    for output in as_list([] if outputs is None else outputs, "outputs"):
        _add_output(message, as_object(output, "outputs"), binary)
    return InferCall(message, binary, binary_default)


def write_response(response: pb.ModelInferResponse, call: InferCall) -> tuple[bytes, int | None]:
    """Writes the answer to a request.

    Args:
        response: The answer as over gRPC: FP32 outputs, little-endian in
            ``raw_output_contents``.
        call: The request.

    Returns:
        The body, and the value of ``HEADER_LENGTH``: None if all of it is JSON. In JSON, elements
        are flat and row-major, each with the digits that make the same float32; "NaN", "Infinity"
        and "-Infinity" stand for what JSON has no number for, as in proto3's JSON.

    Raises:
        InvalidRequestError: The JSON would have more than ``MAX_JSON_ELEMENTS`` elements.
    """
    _check_size(response, call)
    tensors: list[bytes] = []
    parts: list[bytes] = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if call.is_binary(output.name):
            tensors.append(write_json({**tensor, "parameters": {"binary_data_size": len(raw)}}))
            parts.append(raw)
        else:
            tensors.append(write_json(tensor)[:-1] + b',"data":' + _json_numbers(raw) + b"}")
    answer = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        answer["id"] = response.id
    text = write_json(answer)[:-1] + b',"outputs":[' + b",".join(tensors) + b"]}"
    return b"".join((text, *parts)), len(text) if parts else None


def to_json(message: Message) -> dict[str, Any]:
    """Returns a message as the protocol has it in JSON: all fields, and 64-bit integers as numbers.

    proto3's JSON has them as strings, and leaves out fields with default values.
    """
    return {
        field.name: _field_to_json(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


class _BinaryData:
    """The binary data behind the JSON object, which tensors take in their order."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body, self._start = body, start

    def take(self, size: Any) -> bytes:
        """Returns the next bytes.

        Raises:
            InvalidRequestError: The size is no whole number, or there are not so many bytes.
        """
        field = "inputs.parameters.binary_data_size"
        count = as_integer(size, field, 0, _MAX_INT64)
        left = len(self._body) - self._start
        if count > left:
            raise InvalidRequestError(
                field,
                f"binary_data_size is {count}, but {left} bytes follow the JSON and the inputs "
                f"before; does the header {HEADER_LENGTH} say the length of the JSON?",
            )
        start, self._start = self._start, self._start + count
        return self._body[start : self._start]

    def check_end(self) -> None:
        """Checks that all bytes are taken.

        Raises:
            InvalidRequestError: Some are left.
        """
        if left := len(self._body) - self._start:
            raise InvalidRequestError(
                "inputs.parameters.binary_data_size",
                f"{left} bytes of binary data are left over: the sizes of the inputs are too small",
            )


def _length(header: str, size: int) -> int:
    text = header.strip()
    digits = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    if not digits or int(text) > size:
        raise InvalidRequestError(
            HEADER_LENGTH,
            f"{HEADER_LENGTH} is {header!r}; it must be the bytes of the JSON, 0 to {size}, the "
            "size of the body",
        )
    return int(text)


def _check_same(request: dict[str, Any], key: str, expected: str) -> None:
    """Checks a key that repeats the path, as KServe's client sends it."""
    given = _optional_text(request.get(key), key)
    if given not in ("", expected):
        raise InvalidRequestError(
            key, f"{key} is {given!r}, but the path says {expected or 'none'!r}"
        )


def _id(value: Any) -> str:
    text = _optional_text(value, "id")
    if len(text) > _MAX_ID_CHARS:
        raise InvalidRequestError(
            "id", f"the id has {len(text)} characters; it may have {_MAX_ID_CHARS}"
        )
    return text


def _optional_text(value: Any, field: str) -> str:
    return "" if value is None else as_text(value, field)


def _set_parameters(target: Any, parameters: dict[str, Any], field: str) -> None:
    for name, value in parameters.items():
        found = target[as_text(name, field)]
        match value:
            case bool():
                found.bool_param = value
            case int() if -_MAX_INT64 - 1 <= value <= _MAX_INT64:
                found.int64_param = value
            case int() if 0 <= value <= _MAX_UINT64:
                found.uint64_param = value
            case float():
                found.double_param = value
            case str():
                found.string_param = as_text(value, field)
            case _:
                raise InvalidRequestError(
                    field,
                    f"parameter {name!r} is {kind(value)}; it must be a string, a boolean or a "
                    "number of at most 64 bits",
                )


def _add_input(
    message: pb.ModelInferRequest, tensor: dict[str, Any], binary_data: _BinaryData
) -> None:
    check_keys(tensor, _INPUT_KEYS, "inputs")
    shape = [
        as_integer(size, "inputs.shape", 0, _MAX_INT64)
        for size in as_list(tensor.get("shape"), "inputs.shape")
    ]
    datatype = as_text(tensor.get("datatype"), "inputs.datatype")
    parameters = dict(as_object(tensor.get("parameters"), "inputs.parameters"))
    data = tensor.get("data")
    size = parameters.pop("binary_data_size", None)
    if (data is None) == (size is None):
        raise InvalidRequestError(
            "inputs.data",
            "an input has either data or the parameter binary_data_size; this input has "
            + ("none of them" if data is None else "both"),
        )
    if data is None:
        raw = binary_data.take(size)
    else:
        elements = flatten(as_list(data, "inputs.data"), shape, "inputs.data")
        encoded = datatype == "BYTES" and parameters.get("content_type") == _BASE64
        if encoded:
            del parameters["content_type"]
        raw = _raw(elements, datatype, encoded)
    found = message.inputs.add(
        name=as_text(tensor.get("name"), "inputs.name"), datatype=datatype, shape=shape
    )
    _set_parameters(found.parameters, parameters, "inputs.parameters")
    message.raw_input_contents.append(raw)


def _raw(elements: list[Any], datatype: str, base64: bool) -> bytes:
    """Returns the elements of ``data`` as they are in binary data; empty for other datatypes."""
    field = "inputs.data"
    if datatype == "UINT8":
        return to_pixels(elements, field)
    if datatype == "BYTES":
        texts = (
            decode_base64(value, field) if base64 else as_text(value, field).encode()
            for value in elements
        )
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return b""


def _add_output(
    message: pb.ModelInferRequest, output: dict[str, Any], binary: dict[str, bool]
) -> None:
    check_keys(output, _OUTPUT_KEYS, "outputs")
    name = as_text(output.get("name"), "outputs.name")
    parameters = dict(as_object(output.get("parameters"), "outputs.parameters"))
    if "binary_data" in parameters:
        binary[name] = as_bool(parameters.pop("binary_data"), "outputs.parameters.binary_data")
    found = message.outputs.add(name=name)
    _set_parameters(found.parameters, parameters, "outputs.parameters")


def _check_size(response: pb.ModelInferResponse, call: InferCall) -> None:
    count = sum(
        math.prod(output.shape) for output in response.outputs if not call.is_binary(output.name)
    )
    if count > MAX_JSON_ELEMENTS:
        raise InvalidRequestError(
            "outputs.parameters.binary_data",
            f"the outputs have {count} elements in JSON; there may be {MAX_JSON_ELEMENTS}: ask for "
            "binary data (binary_data_output), fewer outputs or fewer images",
        )


def _json_numbers(raw: bytes) -> bytes:
    values = np.frombuffer(raw, "<f4")
    numbers = values.tolist()
    if np.isfinite(values).all() and values.all():
        # Nine digits determine a float32, and are written three times as fast as a float64.
        return ("[" + ",".join(["%.9g"] * len(numbers)) % tuple(numbers) + "]").encode()
    # -0 would be read as a whole number without a sign.
    return write_json([value if math.isfinite(value) else _json_number(value) for value in numbers])


def _json_number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _field_to_json(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {
            key: to_json(entry) if isinstance(entry, Message) else entry
            for key, entry in sorted(value.items())
        }
    if field.is_repeated:
        return [_value_to_json(field, entry) for entry in value]
    return _value_to_json(field, value)


def _value_to_json(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return to_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
