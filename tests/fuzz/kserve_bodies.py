"""Bodies of KServe's protocols over HTTP: valid bodies, and bodies changed at random."""

import base64
import json
import random
from copy import deepcopy
from typing import Any

from fuzz.mutations import image_files, mutate_image

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 64, 255, 256, 2**31, 2**63, -(2**63), 2**64, 10**40),
    *(0.5, 1e308, "", "m", "1", "image", "encoded_image", "UINT8", "BYTES", "FP32", "logits"),
    *("heatmap", "base64", "\ud800", "ß" * 40, "x" * 20_000, [], {}, [[]], [1, "a"]),
    *({"b64": "aaaa"}, {"b64": 5}, {"image": [[[1, 2, 3]]]}, {"binary_data": True}),
)
_NAMES = (
    *("instances", "parameters", "b64", "image", "inputs", "outputs", "name", "shape", "datatype"),
    *("data", "binary_data_size", "binary_data", "binary_data_output", "content_type", "id"),
    *("class", "method", "model_name", "top_k", "\ud800", "no such"),
)
_TEXTS = (b"NaN", b"Infinity", b"1e400", b"1" * 5000, b"[" * 5000, b'{"a":' * 5000, b'"', b"\xff")


def v1_body(rng: random.Random) -> bytes:
    """Returns a body of V1: most are valid."""
    instances = [_instance(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    body: dict[str, Any] = {"instances": instances}
    if rng.random() < 0.5:
        body["parameters"] = {"class": [rng.choice(("cat", 1, 99))], "top_k": 2}
    return _changed(body, rng)


def v2_body(rng: random.Random) -> bytes:
    """Returns a request of V2, after its header's value and a line break: most are valid."""
    count = rng.choice((1, 1, 2))
    if rng.random() < 0.5:
        shape = [count, rng.randint(1, 6), rng.randint(1, 6), 3]
        raw = rng.randbytes(count * shape[1] * shape[2] * 3)
        tensor: dict[str, Any] = {"name": "image", "shape": shape, "datatype": "UINT8"}
        data: list[Any] = list(raw)
    else:
        files = [_file(rng) for _ in range(count)]
        raw = b"".join(len(one).to_bytes(4, "little") + one for one in files)
        tensor = {"name": "encoded_image", "shape": [count], "datatype": "BYTES"}
        tensor["parameters"] = {"content_type": "base64"}
        data = [base64.b64encode(one).decode() for one in files]
    body: dict[str, Any] = {"id": "7", "inputs": [tensor]}
    if rng.random() < 0.4:
        names = ("logits", "probabilities", "heatmap")
        body["outputs"] = [
            {"name": name, "parameters": {"binary_data": rng.random() < 0.5}}
            for name in rng.sample(names, rng.randint(1, 3))
        ]
    if rng.random() < 0.4:
        body["parameters"] = {"class": rng.choice(("cat", 1, 99)), "binary_data_output": True}
    if rng.random() < 0.5:
        tensor["data"] = data
        return b"\n" + _changed(body, rng)
    tensor["parameters"] = {"binary_data_size": len(raw)}
    text = _changed(body, rng)
    length = len(text) + (rng.choice((-1, 1, 10**9, -(10**9))) if rng.random() < 0.1 else 0)
    return f"{length}\n".encode() + text + raw


def mutate_body(data: bytes, rng: random.Random) -> bytes:
    """Puts a text that JSON lacks in a body, or changes its bytes."""
    if rng.random() < 0.5:
        at = rng.randrange(len(data) + 1)
        return data[:at] + rng.choice(_TEXTS) + data[at + rng.randrange(4) :]
    return mutate_image(data, rng)


def _instance(rng: random.Random) -> Any:
    if rng.random() < 0.5:
        image: Any = {"b64": base64.b64encode(_file(rng)).decode()}
    else:
        height, width = rng.randint(1, 5), rng.randint(1, 5)
        image = [[list(rng.randbytes(3)) for _ in range(width)] for _ in range(height)]
    return {"image": image} if rng.random() < 0.3 else image


def _file(rng: random.Random) -> bytes:
    file = rng.choice(image_files())
    return mutate_image(file, rng) if rng.random() < 0.2 else file


def _changed(body: dict[str, Any], rng: random.Random) -> bytes:
    """Returns a body as JSON; half of them with one or two other values."""
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 2)):
            _change(body, rng)
    return json.dumps(body).encode()


def _change(value: Any, rng: random.Random) -> None:
    """Changes, adds or removes a value, at any depth."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if keys and rng.random() < 0.6:
        key = rng.choice(keys)
        if isinstance(value[key], dict | list):
            _change(value[key], rng)
            return
    if isinstance(value, list):
        value.insert(rng.randrange(len(value) + 1), deepcopy(rng.choice(_VALUES)))
    elif keys and rng.random() < 0.2:
        del value[rng.choice(keys)]
    else:
        value[rng.choice([*keys, *_NAMES])] = deepcopy(rng.choice(_VALUES))
