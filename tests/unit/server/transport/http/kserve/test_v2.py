"""The Open Inference Protocol over HTTP: JSON and binary tensors."""

import base64
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.utils import serialize_byte_tensor

from gradcam.inference import grpc_service_pb2 as pb
from gradcam_server.domain.requests import ExplainRequest, RawImage, Target
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.http.kserve import v2
from gradcam_server.transport.http.kserve.v2 import (
    InferCall,
    parse_request,
    to_json,
    write_response,
)
from gradcam_server.transport.open_inference.convert import to_request
from gradcam_server.transport.open_inference.tensors import MAX_IMAGES, read_images

PIXELS = {"name": "image", "shape": [1, 2, 3], "datatype": "UINT8"}
DATA = {**PIXELS, "data": list(b"abcdef")}


def parse(body: Any, header: str | None = None) -> InferCall:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(data, header, "m")


def binary(*tensors: tuple[dict[str, Any], bytes], **more: Any) -> tuple[bytes, str]:
    """Returns a body with binary data, and the length of its JSON."""
    inputs = [{**tensor, "parameters": {"binary_data_size": len(data)}} for tensor, data in tensors]
    text = json.dumps({"inputs": inputs, **more}).encode()
    return text + b"".join(data for _, data in tensors), str(len(text))


def refused(body: Any, header: str | None = None) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        to_request(parse(body, header).message, "m", "")
    return caught.value


pixel_arrays = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.just(3))
)
files = st.lists(st.binary(max_size=40), min_size=1, max_size=MAX_IMAGES)


@given(pixel_arrays)
def test_pixels_are_the_same_in_each_form(array: np.ndarray[Any, Any]) -> None:
    """Binary, flat and nested tensors become the same images, bit for bit."""
    tensor = {"name": "image", "shape": list(array.shape), "datatype": "UINT8"}
    forms = (
        parse(*binary((tensor, array.tobytes()))),
        parse({"inputs": [{**tensor, "data": array.ravel().tolist()}]}),
        parse({"inputs": [{**tensor, "data": array.tolist()}]}),
    )
    expected = [RawImage(one.tobytes(), *one.shape[:2]) for one in array]
    for call in forms:
        assert read_images(call.message) == expected


@given(files)
def test_files_are_the_same_in_each_form(contents: list[bytes]) -> None:
    """Binary tensors and base64, flat or nested, become the same files."""
    count = len(contents)
    data = b"".join(len(one).to_bytes(4, "little") + one for one in contents)
    tensor = {"name": "encoded_image", "shape": [count], "datatype": "BYTES"}
    texts = [base64.b64encode(one).decode() for one in contents]
    as_base64 = {**tensor, "parameters": {"content_type": "base64"}}
    nested = {**as_base64, "shape": [count, 1], "data": [[text] for text in texts]}
    for call in (
        parse(*binary((tensor, data))),
        parse({"inputs": [{**as_base64, "data": texts}]}),
        parse({"inputs": [nested]}),
    ):
        assert read_images(call.message) == contents


def test_strings_are_utf8() -> None:
    """BYTES in JSON are strings, as the protocol has them."""
    tensor = {"name": "encoded_image", "shape": [2], "datatype": "BYTES", "data": ["aé", ""]}
    assert read_images(parse({"inputs": [tensor]}).message) == ["aé".encode(), b""]


@given(pixel_arrays, files, st.booleans())
def test_bodies_of_tritons_client_are_read(
    array: np.ndarray[Any, Any], contents: list[bytes], as_binary: bool
) -> None:
    """What tritonclient[http] writes is read, for both inputs."""
    tensor = triton.InferInput("image", array.shape, "UINT8")
    tensor.set_data_from_numpy(array, binary_data=as_binary)
    body, length = triton.InferenceServerClient.generate_request_body(
        [tensor],
        [triton.InferRequestedOutput("logits", binary_data=as_binary)],
        "7",
        priority=2,
        timeout=5,
        parameters={"class": "tabby"},
    )
    call = parse(body, None if length is None else str(length))
    request = to_request(call.message, "m", "")
    assert [one.image for one in request.images] == [
        RawImage(one.tobytes(), *one.shape[:2]) for one in array
    ]
    assert (call.message.id, request.outputs, request.images[0].priority) == ("7", ("logits",), 2)
    assert call.is_binary("logits") is as_binary
    texts = np.empty(len(contents), dtype=object)
    texts[:] = contents
    tensor = triton.InferInput("encoded_image", texts.shape, "BYTES")
    tensor.set_data_from_numpy(texts)
    body, length = triton.InferenceServerClient.generate_request_body([tensor])
    call = parse(body, str(length))
    assert read_images(call.message) == contents
    assert call.is_binary("heatmap")
    assert serialize_byte_tensor(texts).item() == call.message.raw_input_contents[0]


def test_bodies_of_kserves_client_are_read() -> None:
    """Bodies that kserve 0.21 (InferenceRESTClient, v2) has sent, byte for byte."""
    mixed = (
        b'{"id":"7","model_name":"m","inputs":[{"name":"image","shape":[1,2,2,3],'
        b'"datatype":"UINT8","parameters":{"binary_data_size":12}}],"outputs":[{"name":"logits",'
        b'"parameters":{"binary_data":true}},{"name":"heatmap","parameters":{"binary_data":false}}'
        b'],"parameters":{"class":"tabby","priority":1}}'
        b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b"
    )
    call = parse(mixed, "291")
    request = to_request(call.message, "m", "")
    assert request.outputs == ("logits", "heatmap")
    assert [call.is_binary(name) for name in request.outputs] == [True, False]
    assert request.images == (
        ExplainRequest(
            RawImage(bytes(range(12)), 2, 2),
            model="m",
            targets=(Target("tabby"),),
            prediction_count=0,
        ),
    )
    text = (
        b'{"id":"8","model_name":"m","inputs":[{"name":"image","shape":[1,2,2,3],'
        b'"datatype":"UINT8","data":[0,1,2,3,4,5,6,7,8,9,10,11]}]}'
    )
    call = parse(text)
    assert read_images(call.message) == [RawImage(bytes(range(12)), 2, 2)]
    assert not call.is_binary("logits")
    file = (
        b'{"id":"9","model_name":"m","inputs":[{"name":"encoded_image","shape":[1],'
        b'"datatype":"BYTES","parameters":{"binary_data_size":7}}],'
        b'"parameters":{"binary_data_output":true}}\x03\x00\x00\x00\xff\xd8x'
    )
    call = parse(file, "171")
    assert read_images(call.message) == [b"\xff\xd8x"]
    assert call.is_binary("logits")


def test_parameters_keep_their_types() -> None:
    """Strings, booleans and numbers become parameters as over gRPC."""
    given = {"a": "x", "b": True, "c": 1, "d": 2**63, "e": 1.5, "binary_data_output": True}
    message = parse({"inputs": [DATA], "parameters": given}).message
    kinds = {name: one.WhichOneof("parameter_choice") for name, one in message.parameters.items()}
    assert kinds == {
        "a": "string_param",
        "b": "bool_param",
        "c": "int64_param",
        "d": "uint64_param",
        "e": "double_param",
    }
    assert message.parameters["d"].uint64_param == 2**63


def changed(**changes: Any) -> dict[str, Any]:
    """Returns a valid request whose input has changes; None removes."""
    tensor = {**DATA, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


SIZES = "inputs.parameters.binary_data_size"


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ([], "body", "not an object"),
        ({}, "inputs", "must be an array"),
        ({"inputs": []}, "inputs", "exactly one input"),
        ({"inputs": [DATA, DATA]}, "inputs", "exactly one input"),
        ({"inputs": [5]}, "inputs", "must be an object"),
        ({"inputs": [DATA], "output": []}, "body", "unknown key 'output'"),
        ({"inputs": [DATA], "id": 7}, "id", "must be a string"),
        ({"inputs": [DATA], "id": "\ud800"}, "id", "surrogate"),
        ({"inputs": [DATA], "id": "x" * 1001}, "id", "it may have 1000"),
        ({"inputs": [DATA], "model_name": "n"}, "model_name", "the path says 'm'"),
        ({"inputs": [DATA], "model_version": "2"}, "model_version", "the path says 'none'"),
        ({"inputs": [DATA], "parameters": []}, "parameters", "must be an object"),
        ({"inputs": [DATA], "parameters": {"class": [1]}}, "parameters", "is an array"),
        ({"inputs": [DATA], "parameters": {"class": 2**64}}, "parameters", "64 bits"),
        ({"inputs": [DATA], "parameters": {"\ud800": 1}}, "parameters", "surrogate"),
        ({"inputs": [DATA], "parameters": {"clas": 1}}, "parameters", "unknown parameter"),
        (
            {"inputs": [DATA], "parameters": {"binary_data_output": 1}},
            "parameters.binary_data_output",
            "must be true or false",
        ),
        ({"inputs": [DATA], "outputs": {}}, "outputs", "must be an array"),
        ({"inputs": [DATA], "outputs": ["logits"]}, "outputs", "must be an object"),
        ({"inputs": [DATA], "outputs": [{}]}, "outputs.name", "must be a string"),
        ({"inputs": [DATA], "outputs": [{"name": "x"}]}, "outputs.name", "unknown output"),
        ({"inputs": [DATA], "outputs": [{"name": "logits"}] * 2}, "outputs.name", "twice"),
        (
            {"inputs": [DATA], "outputs": [{"name": "logits", "parameters": {"binary_data": 0}}]},
            "outputs.parameters.binary_data",
            "must be true or false",
        ),
        (
            {
                "inputs": [DATA],
                "outputs": [{"name": "logits", "parameters": {"classification": 1}}],
            },
            "outputs.parameters",
            "classification",
        ),
        (changed(name=None), "inputs.name", "must be a string"),
        (changed(name="pixels"), "inputs.name", "unknown input"),
        (changed(datatype=None), "inputs.datatype", "must be a string"),
        (changed(datatype="FP32"), "inputs.datatype", "must be UINT8"),
        (changed(datatype="BYTES"), "inputs.data", "must be a string"),
        (changed(shape=None), "inputs.shape", "must be an array"),
        (changed(shape=[1, 2.0, 3]), "inputs.shape", "must be a whole number"),
        (changed(shape=[True, 2, 3]), "inputs.shape", "must be a whole number"),
        (changed(shape=[-1, 2, 3]), "inputs.shape", "not in the range"),
        (changed(shape=[2**63, 2, 3]), "inputs.shape", "not in the range"),
        (changed(shape=[2**40, 2**40, 3]), "inputs", "has 6 elements"),
        (changed(shape=[6]), "inputs.shape", "has shape [6]"),
        (changed(shape=[1] * 5000), "inputs.shape", "[height, width, 3]"),
        (changed(data=None), "inputs.data", "none of them"),
        (changed(data="abcdef"), "inputs.data", "must be an array"),
        (changed(data=[1, 2]), "inputs", "has 2 elements"),
        (changed(data=[[[1, 2], [3, 4], [5, 6]]]), "inputs.data", "do not have the shape"),
        (changed(data=[1, 2, 3, 4, 5, 256]), "inputs.data", "over 255"),
        (changed(data=[1, 2, 3, 4, 5, 6.5]), "inputs.data", "floating-point"),
        (changed(parameters={"binary_data_size": 6}), "inputs.data", "both"),
        (changed(parameters={"content_type": "np"}), "inputs.parameters", "content_type"),
        (changed(parameters={"shared_memory_region": "r"}), "inputs.parameters", "shared memory"),
        (changed(data=None, parameters={"binary_data_size": 6}), SIZES, "0 bytes follow"),
        (changed(data=None, parameters={"binary_data_size": -1}), SIZES, "not in the range"),
        (changed(data=None, parameters={"binary_data_size": "6"}), SIZES, "whole number"),
        (changed(data=None, parameters={"binary_data_size": True}), SIZES, "whole number"),
        (changed(data=None, parameters={"binary_data_size": 10**30}), SIZES, "not in the range"),
        (changed(extra=1), "inputs", "unknown key 'extra'"),
    ],
)
def test_requests_that_are_wrong_are_refused(body: Any, field: str, text: str) -> None:
    """The error names the field and what would be right."""
    error = refused(body)
    assert (error.field, text in str(error)) == (field, True), str(error)


@pytest.mark.parametrize(
    "header", ["", "-1", "x", "1.5", "+5", "0x10", "²", "1 0", "9" * 30, "100000", "1_0"]
)
def test_lengths_of_the_json_that_are_wrong_are_refused(header: str) -> None:
    """A length that is no number, or larger than the body, is an error of the header's."""
    body, _ = binary((PIXELS, b"abcdef"))
    error = refused(body, header)
    assert error.field == "Inference-Header-Content-Length"


def test_binary_data_must_be_as_long_as_the_inputs_say() -> None:
    """Bytes that are left over, that are missing, or that two inputs claim are errors."""
    body, length = binary((PIXELS, b"abcdef"))
    assert "1 bytes of binary data are left" in str(refused(body + b"g", length))
    assert "5 bytes follow" in str(refused(body[:-1], length))
    both, length = binary((PIXELS, b"abcdef"), (PIXELS, b"abcdef"))
    assert "0 bytes follow" in str(refused(both[:-6], length))
    for header in ("0", str(int(length) - 1), str(int(length) + 1)):
        assert refused(both, header).field == "body"
    assert refused(body, None).field == "body"


def answer(
    outputs: Sequence[tuple[str, np.ndarray[Any, Any]]], **message: Any
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="m", model_version="1", **message)
    for name, values in outputs:
        response.outputs.add(name=name, datatype="FP32", shape=values.shape)
        response.raw_output_contents.append(values.tobytes())
    return response


@given(arrays.arrays("<f4", arrays.array_shapes(min_dims=2, max_dims=3, max_side=4)), st.booleans())
def test_tritons_client_reads_the_same_numbers_in_each_form(
    values: np.ndarray[Any, Any], logits_binary: bool
) -> None:
    """Binary and JSON outputs, alone and mixed, are the same float32 to the bit."""
    names = {"logits": logits_binary, "heatmap": not logits_binary, "probabilities": False}
    for binary_names in (names, dict.fromkeys(names, False), dict.fromkeys(names, True)):
        call = InferCall(pb.ModelInferRequest(), binary_names, binary_default=False)
        response = answer([(name, values) for name in names], id="7")
        body, length = write_response(response, call)
        assert (length is None) == (not any(binary_names.values()))
        result = triton.InferenceServerClient.parse_response_body(body, header_length=length)
        assert result.get_response()["id"] == "7"
        for name in names:
            found = result.as_numpy(name)
            assert found.shape == values.shape
            # A NaN has many bit patterns, and JSON has one word.
            np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
            assert np.nan_to_num(found, nan=0).tobytes() == np.nan_to_num(values, nan=0).tobytes()


def test_too_many_numbers_in_json_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would block the event loop; as binary data they are sent."""
    monkeypatch.setattr(v2, "MAX_JSON_ELEMENTS", 5)
    response = answer([("logits", np.ones((1, 3), "<f4")), ("heatmap", np.ones((1, 1, 3), "<f4"))])
    with pytest.raises(InvalidRequestError, match="6 elements in JSON; there may be 5"):
        write_response(response, InferCall(pb.ModelInferRequest(), {}, binary_default=False))
    call = InferCall(pb.ModelInferRequest(), {"logits": False}, binary_default=True)
    assert write_response(response, call)[1] is not None


def test_json_answers_are_valid_json_whatever_the_numbers() -> None:
    """NaN and infinities are words, as in proto3's JSON."""
    values = np.array([[np.nan, np.inf, -np.inf, 0.1, -0.0]], "<f4")
    call = InferCall(pb.ModelInferRequest(), {}, binary_default=False)
    body, _ = write_response(answer([("logits", values)]), call)

    def fail(text: str) -> None:
        raise AssertionError(text)

    (tensor,) = json.loads(body, parse_constant=fail)["outputs"]
    assert tensor["data"] == ["NaN", "Infinity", "-Infinity", float(np.float32(0.1)), 0]
    assert "id" not in json.loads(body)


def test_messages_have_all_fields_and_numbers_in_json() -> None:
    """Shapes are numbers, enums are names, and zeros are not left out: as Triton writes them."""
    metadata = pb.ModelMetadataResponse(name="m", versions=["1"])
    metadata.inputs.add(name="image", datatype="UINT8", shape=[-1, 3])
    assert to_json(metadata) == {
        "name": "m",
        "versions": ["1"],
        "platform": "",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 3]}],
        "outputs": [],
    }
    config = pb.ModelConfig(parameters={"b": pb.ModelParameter(string_value="x")})
    config.input.add(name="image", data_type=pb.TYPE_UINT8, dims=[3])
    written = SimpleNamespace(**to_json(config))
    assert written.max_batch_size == 0
    assert written.parameters == {"b": {"string_value": "x"}}
    assert written.input[0]["data_type"] == "TYPE_UINT8"
    statistics = pb.ModelStatistics(name="m", inference_count=2**40)
    assert to_json(statistics)["inference_count"] == 2**40
    assert to_json(statistics)["execution_count"] == 0
