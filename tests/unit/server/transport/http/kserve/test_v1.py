"""KServe V1: instances to images and options."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.domain.requests import Method, RawImage, Target, TopK
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.gradcam_v1.convert import to_request
from gradcam_server.transport.http.documents import read_json
from gradcam_server.transport.http.kserve.v1 import (
    FIELDS,
    Instances,
    parse_instances,
    to_answer,
    to_requests,
)


def parse(body: Any) -> Instances:
    return parse_instances(read_json(json.dumps(body).encode()))


B64 = {"b64": base64.b64encode(b"file").decode()}


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_files_are_base64_in_both_forms(contents: list[bytes]) -> None:
    """An instance is an object with b64, or has it as its image."""
    encoded = [{"b64": base64.b64encode(one).decode()} for one in contents]
    expected = Instances(tuple(contents), ())
    assert parse({"instances": encoded}) == expected
    assert parse({"instances": [{"image": one} for one in encoded]}) == expected


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3))))
def test_pixels_are_nested_arrays(array: np.ndarray[Any, Any]) -> None:
    """Rows of RGB pixels, with or without the key image."""
    image = RawImage(array.tobytes(), *array.shape[:2])
    instances = [array.tolist(), {"image": array.tolist()}]
    assert parse({"instances": instances}).images == (image, image)


def test_bodies_of_kserves_client_are_read() -> None:
    """Bodies that kserve 0.21 (InferenceRESTClient, v1) has sent, byte for byte."""
    predict = read_json(b'{"instances":[{"b64":"aaaa"}]}')
    assert parse_instances(predict) == Instances((b"i\xa6\x9a",), ())
    explain = read_json(
        b'{"instances":[{"image":{"b64":"aaaa"}}],"parameters":{"class":["tabby"]}}'
    )
    assert parse_instances(explain) == Instances((b"i\xa6\x9a",), (("class", "tabby"),))


def test_parameters_are_options_as_in_a_query() -> None:
    """Numbers and booleans become texts, and an array is an option with several values."""
    parameters = {"class": ["tabby", 281], "top_k": 2, "alpha": 0.5, "logits": True}
    assert parse({"instances": [B64], "parameters": parameters}).parameters == (
        ("class", "tabby"),
        ("class", "281"),
        ("top_k", "2"),
        ("alpha", "0.5"),
        ("logits", "true"),
    )


def test_each_image_is_a_request_with_the_same_options() -> None:
    """Options reach the requests of :explain as those of the flags of ``gradcam explain``."""
    instances = Instances((b"a", b"b"), (("class", "tabby"), ("method", "layercam")))
    requests = to_requests(instances, "m", "2", explain=True)
    for request, image in zip(requests, (b"a", b"b"), strict=True):
        found = to_request(request)
        assert (found.image, found.model, found.model_version) == (image, "m", "2")
        assert (found.targets, found.method) == ((Target("tabby"),), Method.LAYER_CAM)


def test_predictions_explain_nothing() -> None:
    """:predict asks for no explanation, and refuses the options of explanations."""
    instances = Instances((b"a",), (("predictions", "3"), ("priority", "2")))
    (request,) = to_requests(instances, "m", "", explain=False)
    found = to_request(request)
    assert (found.targets, found.prediction_count, found.priority) == (TopK(0), 3, 2)
    for name in ("class", "method", "top_k", "logits"):
        with pytest.raises(InvalidRequestError, match="no effect on predictions") as caught:
            to_requests(Instances((b"a",), ((name, "1"),)), "m", "", explain=False)
        assert FIELDS[caught.value.field] == f"parameters.{name}"
    with pytest.raises(InvalidRequestError, match="unknown option 'clas'"):
        to_requests(Instances((b"a",), (("clas", "1"),)), "m", "", explain=False)


def test_predictions_have_all_fields() -> None:
    """Class 0 and a probability of 0 are not left out; NaN is a word, as in proto3's JSON."""
    response = pb.ExplainImageResponse()
    response.predictions.add(class_name="a", logit=float("nan"))
    answer = to_answer([response, pb.ExplainImageResponse()], explain=False)
    first = {"class_index": 0, "class_name": "a", "probability": 0.0, "logit": "NaN"}
    assert answer == {"predictions": [[first], []]}
    explained = to_answer([pb.ExplainImageResponse(model="m")], explain=True)
    assert explained == {"explanations": [{"model": "m"}]}


FIRST = "instances[0]"


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({}, "instances", "must be an array"),
        ({"instances": B64}, "instances", "must be an array"),
        ({"instances": []}, "instances", "has 0 instances"),
        ({"instances": [B64] * 65}, "instances", "1 to 64"),
        ({"instances": [B64], "signature_name": "x"}, "body", "unknown key"),
        ({"instances": [B64], "parameters": [1]}, "parameters", "must be an object"),
        ({"instances": [B64], "parameters": {"a": {}}}, "parameters", "an option is an object"),
        ({"instances": [B64], "parameters": {"a": [[1]]}}, "parameters", "is an array"),
        ({"instances": [B64], "parameters": {"a": None}}, "parameters", "is null"),
        ({"instances": [B64], "parameters": {"\ud800": 1}}, "parameters", "surrogate"),
        ({"instances": [7]}, FIRST, "this instance is a whole number"),
        ({"instances": ["aaaa"]}, FIRST, "this instance is a string"),
        ({"instances": [{}]}, FIRST, "this instance is an object"),
        ({"instances": [B64, {"b64": "a"}]}, "instances[1].b64", "base64"),
        ({"instances": [{"b64": 7}]}, f"{FIRST}.b64", "must be a string"),
        ({"instances": [{**B64, "key": 1}]}, FIRST, "unknown key 'key'"),
        ({"instances": [{"image": B64, "key": 1}]}, FIRST, "unknown key 'key'"),
        ({"instances": [{"image": {"image": B64}}]}, f"{FIRST}.image", "is an object"),
        ({"instances": [[]]}, FIRST, "shape [0]"),
        ({"instances": [[[]]]}, FIRST, "shape [1, 0]"),
        ({"instances": [[1, 2, 3]]}, FIRST, "[height, width, 3]"),
        ({"instances": [[[[1, 2]]]]}, FIRST, "shape [1, 1, 2]"),
        ({"instances": [[[[[1, 2, 3]]]]]}, FIRST, "[height, width, 3]"),
        ({"instances": [[[[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]]]}, FIRST, "do not have the shape"),
        ({"instances": [[[[1, 2, 3]], 5]]}, FIRST, "do not have the shape"),
        ({"instances": [[[[1, 2, 256]]]]}, FIRST, "over 255"),
        ({"instances": [[[[1, 2, 0.5]]]]}, FIRST, "floating-point"),
    ],
)
def test_requests_that_are_wrong_are_refused(body: Any, field: str, text: str) -> None:
    """The error names the instance and what would be right."""
    with pytest.raises(InvalidRequestError) as caught:
        parse(body)
    error = caught.value
    assert (error.field, text in str(error)) == (field, True), str(error)
