"""JSON of clients, read strictly."""

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.http import documents
from gradcam_server.transport.http.documents import read_json
from gradcam_server.transport.http.kserve.json_values import decode_base64, flatten, to_pixels


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "not JSON"),
        (b"[1]", "is not an object"),
        (b"{}x", "not JSON"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"b": [{"x": 1, "y": 1, "x": 1}]}', "'x' is there twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e400}', "too large"),
        (b'{"a": -1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ("{}".encode("utf-16"), "not UTF-8"),
    ],
)
def test_bodies_that_are_no_plain_json_are_refused(body: bytes, text: str) -> None:
    """Each is an error of the caller's, which says what is wrong."""
    with pytest.raises(InvalidRequestError, match=text) as caught:
        read_json(body)
    assert caught.value.field == "body"


def test_a_text_of_too_many_values_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number of values, which bounds memory and time, is counted in the bytes."""
    monkeypatch.setattr(documents, "MAX_VALUES", 10)
    assert read_json(b'{"a": [1, 2, 3, 4, 5, 6, 7, 8]}') == {"a": list(range(1, 9))}
    for body in (b'{"a": [' + b"1," * 10 + b"1]}", b'{"a": ' + b"[" * 10, b"{" * 11):
        with pytest.raises(InvalidRequestError, match="more than 10 values"):
            read_json(body)


@given(arrays.arrays(np.uint8, arrays.array_shapes(max_dims=4, max_side=4)))
def test_nested_and_flat_arrays_are_the_same_pixels(array: np.ndarray[Any, Any]) -> None:
    """Row-major, as NumPy writes them."""
    for values in (array.tolist(), array.ravel().tolist()):
        assert to_pixels(flatten(values, array.shape, "f"), "f") == array.tobytes()


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2, 3], [4, 5]],
        [[1, 2], [3, 4], [5, 6]],
        [[[1], [2], [3]], [[4], [5], [6]]],
        [1, [2, 3]],
        [[1, 2, 3], 4],
        [[], []],
        [[256, 0, 0], [0, 0, 0]],
        [[-1, 0, 0], [0, 0, 0]],
        [[True, 0, 0], [0, 0, 0]],
        [[1.0, 0, 0], [0, 0, 0]],
        [["1", 0, 0], [0, 0, 0]],
        [[None, 0, 0], [0, 0, 0]],
        [[10**30, 0, 0], [0, 0, 0]],
    ],
)
def test_arrays_that_are_no_pixels_of_the_shape_are_refused(values: list[Any]) -> None:
    """Ragged, transposed or too deep arrays and elements that are not uint8 are errors."""
    with pytest.raises(InvalidRequestError) as caught:
        to_pixels(flatten(values, (2, 3), "inputs.data"), "inputs.data")
    assert caught.value.field == "inputs.data"


@given(st.binary(max_size=60))
def test_base64_is_the_bytes(data: bytes) -> None:
    """Any bytes."""
    assert decode_base64(base64.b64encode(data).decode(), "f") == data


@pytest.mark.parametrize("text", ["a", "abc", "ab$=", "äöüß", "YQ==\n", "a b=", "\ud800", 7, None])
def test_what_is_no_base64_is_refused(text: Any) -> None:
    """Characters out of the alphabet and missing padding are errors, not skipped."""
    with pytest.raises(InvalidRequestError) as caught:
        decode_base64(text, "instances[0].b64")
    assert caught.value.field == "instances[0].b64"
