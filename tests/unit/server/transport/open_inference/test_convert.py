"""Conversion between the tensors of the Open Inference Protocol and the domain's types."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.model_config_pb2 as triton_config_pb
import tritonclient.grpc.service_pb2 as triton_pb
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from gradcam.inference import grpc_service_pb2 as pb
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import (
    ExplainedImage,
    ExplainRequest,
    Explanation,
    Heatmap,
    HeatmapFormat,
    Method,
    RawImage,
    Stats,
    Target,
    TopK,
)
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.open_inference.convert import to_request, to_response
from gradcam_server.transport.open_inference.describe import to_config, to_metadata
from gradcam_server.transport.open_inference.statistics import ModelRecord
from gradcam_server.transport.open_inference.tensors import MAX_IMAGES, decode_bytes, read_images

LAYERS = ("input", "a", "b")


def request(
    name: str = "image",
    datatype: str = "UINT8",
    shape: Sequence[int] = (1, 2, 3),
    raw: Sequence[bytes] = (b"abcdef",),
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=raw)
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def asking(**parameters: Any) -> pb.ModelInferRequest:
    message = request()
    for key, value in parameters.items():
        message.parameters[key].CopyFrom(pb.InferParameter(**value))
    return message


def read(message: pb.ModelInferRequest) -> ExplainRequest:
    (image,) = to_request(message, "m", "").images
    return image


def refused(message: pb.ModelInferRequest) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        to_request(message, "m", "")
    return caught.value


def test_the_wire_is_tritons() -> None:
    """Each field, value and call of our proto is Triton's, by number, type and name."""

    def facts(field: FieldDescriptor) -> tuple[Any, ...]:
        kind = field.message_type or field.enum_type
        oneof = field.containing_oneof
        of_type = kind.full_name if kind else ""
        return field.number, field.type, field.is_repeated, of_type, oneof and oneof.name

    def compare(ours: Descriptor, theirs: Descriptor) -> int:
        for field in ours.fields:
            assert facts(field) == facts(theirs.fields_by_name[field.name]), field.full_name
        nested = [(one, theirs.nested_types_by_name[one.name]) for one in ours.nested_types]
        return len(ours.fields) + sum(compare(*pair) for pair in nested)

    triton = {
        **triton_pb.DESCRIPTOR.message_types_by_name,
        **triton_config_pb.DESCRIPTOR.message_types_by_name,
    }
    count = sum(
        compare(ours, triton[name]) for name, ours in pb.DESCRIPTOR.message_types_by_name.items()
    )
    assert count > 100
    for value in pb.DESCRIPTOR.enum_types_by_name["DataType"].values:
        assert getattr(triton_config_pb, value.name) == value.number
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    calls = triton_pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for call in service.methods:
        theirs = calls[call.name]
        assert call.full_name == theirs.full_name
        assert call.input_type.full_name == theirs.input_type.full_name
        assert call.output_type.full_name == theirs.output_type.full_name
        assert call.server_streaming == theirs.server_streaming


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=MAX_IMAGES))
def test_bytes_are_read_as_tritonclient_writes_them(elements: list[bytes]) -> None:
    """Elements that tritonclient serialises are read unchanged, even if they are empty."""
    tensor = np.empty(len(elements), dtype=object)
    tensor[:] = elements
    data = serialize_byte_tensor(tensor).item()
    assert decode_bytes(data) == elements
    for shape in ([len(elements)], [len(elements), 1]):
        assert read_images(request("encoded_image", "BYTES", shape, [data])) == elements


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5), st.data())
def test_bytes_that_are_cut_off_are_refused(elements: list[bytes], data: st.DataObject) -> None:
    """Wherever the data end, the result is an error or whole elements."""
    whole = b"".join(len(one).to_bytes(4, "little") + one for one in elements)
    end = data.draw(st.integers(0, len(whole) - 1))
    try:
        found = decode_bytes(whole[:end])
    except InvalidRequestError as error:
        assert error.field == "raw_input_contents"  # noqa: PT017 - most ends are errors
    else:
        assert found == elements[: len(found)]
        assert len(found) < len(elements)


def test_pixels_are_read_alone_and_in_batches() -> None:
    """Each image of a batch has its own rows; the batch's dimension is optional."""
    assert read_images(request()) == [RawImage(b"abcdef", 1, 2)]
    assert read_images(request(shape=[1, 1, 2, 3])) == [RawImage(b"abcdef", 1, 2)]
    batch = read_images(request(shape=[2, 1, 1, 3]))
    assert batch == [RawImage(b"abc", 1, 1), RawImage(b"def", 1, 1)]


def test_elements_may_be_in_contents() -> None:
    """Elements may come in the typed fields."""
    pixels = request(raw=[])
    pixels.inputs[0].contents.uint_contents.extend(b"abcdef")
    assert read_images(pixels) == [RawImage(b"abcdef", 1, 2)]
    files = request("encoded_image", "BYTES", [2], [])
    files.inputs[0].contents.bytes_contents.extend([b"x", b""])
    assert read_images(files) == [b"x", b""]


@pytest.mark.parametrize(
    ("message", "field", "text"),
    [
        (request("pixels"), "inputs.name", "unknown input 'pixels'"),
        (request(datatype="FP32"), "inputs.datatype", "'FP32'; it must be UINT8"),
        (request("encoded_image"), "inputs.datatype", "'UINT8'; it must be BYTES"),
        (request(shape=[6]), "inputs.shape", "has shape [6]"),
        (request(shape=[1, 1, 6]), "inputs.shape", "[height, width, 3]"),
        (request(shape=[-1, -2, 3]), "inputs.shape", "[-1, -2, 3]"),
        (request(shape=[0, 1, 2, 3], raw=[b""]), "inputs.shape", "1 to 64 images"),
        (request(shape=[65, 1, 1, 3], raw=[bytes(195)]), "inputs.shape", "1 to 64 images"),
        (request(shape=[1, 1, 3]), "inputs", "has 6 elements; its shape [1, 1, 3] needs 3"),
        (request(shape=[2**40, 2**40, 3]), "inputs", "has 6 elements"),
        (request(raw=[]), "inputs", "has 0 elements"),
        (request(raw=[b"abcdef"] * 2), "raw_input_contents", "2 raw_input_contents for 1 input"),
        (request("encoded_image", "BYTES", [], [b""]), "inputs.shape", "has shape []"),
        (request("encoded_image", "BYTES", [1, 2], [b""]), "inputs.shape", "[images, 1]"),
        (request("encoded_image", "BYTES", [65], [b""]), "inputs.shape", "1 to 64 images"),
        (request("encoded_image", "BYTES", [2], [bytes(4)]), "inputs", "needs 2"),
        (request("encoded_image", "BYTES", [1], [b"\1\0"]), "raw_input_contents", "cut off"),
    ],
)
def test_inputs_that_do_not_match_are_refused(
    message: pb.ModelInferRequest, field: str, text: str
) -> None:
    """Name, type, shape and size: the error names the field and what would be right."""
    error = refused(message)
    assert error.field == field
    assert text in str(error)


def test_an_input_comes_once_and_in_one_place() -> None:
    """No input, two inputs, both kinds of contents and contents of another type are refused."""
    assert "request has 0" in str(refused(pb.ModelInferRequest()))
    two = request()
    two.inputs.add(name="encoded_image", datatype="BYTES", shape=[1])
    assert "exactly one input" in str(refused(two))
    both = request()
    both.inputs[0].contents.uint_contents.extend(b"abcdef")
    assert "choose one" in str(refused(both))
    wrong = request(raw=[])
    wrong.inputs[0].contents.int_contents.extend(b"abcdef")
    assert "belong in uint_contents" in str(refused(wrong))
    large = request(raw=[])
    large.inputs[0].contents.uint_contents.extend([256] * 6)
    assert "over 255" in str(refused(large))
    shared = request()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert "shared memory is not supported" in str(refused(shared))


def test_an_image_alone_asks_for_everything() -> None:
    """The defaults: all outputs, of the top class, by Grad-CAM at the default layer."""
    asked = to_request(request(), "m", "7", deadline=5.0)
    assert asked.outputs == ("logits", "probabilities", "heatmap")
    assert asked.images == (
        ExplainRequest(
            RawImage(b"abcdef", 1, 2),
            model="m",
            model_version="7",
            prediction_count=0,
            deadline=5.0,
        ),
    )


def test_parameters_say_what_is_explained() -> None:
    """Class by index or name, method, layer and priority are parameters."""
    image = read(
        asking(
            **{"class": {"int64_param": 0}},
            method={"string_param": "layercam"},
            layer={"string_param": "block"},
            priority={"uint64_param": 3},
        )
    )
    assert image.targets == (Target(0),)
    assert (image.method, image.layers, image.priority) == (Method.LAYER_CAM, ("block",), 3)
    assert read(asking(**{"class": {"string_param": "tabby"}})).targets == (Target("tabby"),)
    assert read(asking(priority={"uint64_param": 0})).priority == 1
    read(asking(triton_enable_empty_final_response={"bool_param": True}))


def test_the_earlier_of_timeout_and_deadline_counts() -> None:
    """A timeout is in microseconds, 0 is none, and the call's deadline bounds it."""
    second = asking(timeout={"int64_param": 1_000_000})
    for deadline in (None, perf_counter() + 100):
        (image,) = to_request(second, "m", "", deadline=deadline).images
        assert image.deadline is not None
        assert 0 < image.deadline - perf_counter() <= 1
    soon = perf_counter()
    assert to_request(second, "m", "", deadline=soon).images[0].deadline == soon
    assert read(asking(timeout={"int64_param": 0})).deadline is None


def test_only_the_wanted_outputs_cost_anything() -> None:
    """Without a heat map nothing is explained, whatever its parameters are."""
    message = asking(method={"string_param": "layercam"}, layer={"string_param": "block"})
    message.outputs.add(name="probabilities")
    message.outputs.add(name="logits")
    asked = to_request(message, "m", "")
    assert asked.outputs == ("probabilities", "logits")
    (image,) = asked.images
    assert (image.targets, image.method, image.layers) == (TopK(0), Method.GRAD_CAM, ())


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("clas", {"int64_param": 1}, "there are: class, method, layer, priority, timeout"),
        ("class", {"double_param": 1}, "string_param or int64_param or uint64_param"),
        ("class", {}, "it has no value"),
        ("method", {"string_param": "guess"}, "one of: gradcam, "),
        ("layer", {"int64_param": 1}, "it has int64_param; it must have string_param"),
        ("priority", {"int64_param": -1}, "it must be 0 to"),
        ("priority", {"uint64_param": 2**63}, "it must be 0 to"),
        ("timeout", {"int64_param": -1}, "must not be negative"),
    ],
)
def test_parameters_that_are_wrong_are_refused(name: str, value: dict[str, Any], text: str) -> None:
    """An unknown parameter is an error, because it may be a typo."""
    error = refused(asking(**{name: value}))
    assert error.field.startswith("parameters")
    assert text in str(error)


def test_outputs_that_are_wrong_are_refused() -> None:
    """Outputs that are unknown or requested twice, and Triton's classification, are errors."""
    unknown = request()
    unknown.outputs.add(name="saliency")
    assert "there are: logits, probabilities, heatmap" in str(refused(unknown))
    twice = request()
    twice.outputs.add(name="logits")
    twice.outputs.add(name="logits")
    assert "twice" in str(refused(twice))
    classified = request()
    classified.outputs.add(name="logits").parameters["classification"].int64_param = 3
    assert "classification" in str(refused(classified))


def explained(seed: int) -> ExplainedImage:
    numbers = np.random.default_rng(seed).random((3, 6), np.float32)
    heatmap = Heatmap(HeatmapFormat.RAW_FLOAT32, 2, 3, numbers[2].tobytes())
    explanation = Explanation(
        0, "a", 1.0, "layer", Method.GRAD_CAM, 0.0, 1.0, degenerate=False, heatmaps=(heatmap,)
    )
    return ExplainedImage("m", 1, 1, (), (explanation,), numbers[0], numbers[1], Stats())


def test_answers_are_stacked_in_the_order_of_the_request() -> None:
    """One entry for each output, little-endian, images first; the id is echoed."""
    images = [explained(seed) for seed in range(3)]
    outputs = ("heatmap", "logits")
    response = to_response(pb.ModelInferRequest(id="7"), outputs, images)
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "7")
    assert [(one.name, one.datatype) for one in response.outputs] == [
        ("heatmap", "FP32"),
        ("logits", "FP32"),
    ]
    heatmap, logits = (
        np.frombuffer(data, "<f4").reshape(one.shape)
        for data, one in zip(response.raw_output_contents, response.outputs, strict=True)
    )
    np.testing.assert_array_equal(logits, [one.logits for one in images])
    assert heatmap.shape == (3, 2, 3)
    assert heatmap[1].tobytes() == images[1].explanations[0].heatmaps[0].data


def test_metadata_and_configuration_agree() -> None:
    """Both have the same tensors; shapes of metadata begin with the batch."""
    layers = tuple(LayerInfo(name, "Conv2D", (None, 2, 2, 1), name != "input") for name in LAYERS)
    labels = ClassLabels([ClassLabel(str(index)) for index in range(5)])
    model = ServedModel("m", "", labels, layers, "b", (8, 9), Preprocessing.NONE, "file")
    config, metadata = to_config(model), to_metadata(model)
    assert list(metadata.versions) == ["1"]
    assert config.parameters["layers"].string_value == "a,b"
    assert config.parameters["input_size"].string_value == "8x9"
    assert config.parameters["methods"].string_value.split(",") == [*Method]
    for tensors, described in (
        (config.input, metadata.inputs),
        (config.output, metadata.outputs),
    ):
        assert [one.name for one in tensors] == [one.name for one in described]
        assert [[-1, *one.dims] for one in tensors] == [list(one.shape) for one in described]
    shapes = {one.name: (one.datatype, list(one.shape)) for one in metadata.outputs}
    assert shapes["logits"] == ("FP32", [-1, 5])


def test_statistics_count_compiling_as_waiting() -> None:
    """Triton's statistics have no stage for compiling, and their stages add up to the whole."""
    record = ModelRecord("m", "1")
    with record.request() as images:
        images.extend([Stats(1, 9, 3, 4), Stats(1, 2, 3, 4, compile_us=20)])
    assert record.to_message().inference_stats.queue.ns == 22_000


def test_statistics_add_up() -> None:
    """A batch counts once, however many requests share it; failures count separately."""
    record = ModelRecord("m", "1")
    for costs in ([Stats(1, 2, 3, 4, 3), Stats(5, 6, 7, 8, 3)], [Stats(1, 1, 1, 1, 3)]):
        with record.request() as images:
            images.extend(costs)
    with pytest.raises(KeyError), record.request():
        raise KeyError
    message = record.to_message()
    stages = message.inference_stats
    assert (message.inference_count, message.execution_count) == (3, 1)
    assert (stages.success.count, stages.fail.count) == (2, 1)
    # Of the first request its slowest image.
    assert (stages.compute_input.count, stages.compute_input.ns) == (2, 6000)
    assert (stages.queue.ns, stages.compute_infer.ns, stages.compute_output.ns) == (
        7000,
        8000,
        9000,
    )
