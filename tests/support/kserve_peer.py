"""What KServe's own client gets: python kserve_peer.py http://HOST:PORT MODEL IMAGE; prints JSON.

It runs in an environment of its own, which has kserve and its pins, but not our code.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

NAMES = ("logits", "probabilities", "heatmap")


async def ask(url: str, model: str, image: bytes) -> dict[str, Any]:
    """Returns what each call of the client returned: arrays as base64, errors as texts."""
    v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
    v2 = InferenceRESTClient(RESTConfig(protocol="v2"))
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(1, 5, 4, 3)
    found: dict[str, Any] = {
        "v1 model ready": await v1.is_model_ready(url, model),
        "v2 live": await v2.is_server_live(url),
        "v2 ready": await v2.is_server_ready(url),
        "v2 model ready": await v2.is_model_ready(url, model),
        "v2 unknown model ready": await v2.is_model_ready(url, "nothing"),
    }
    for form, binary_in, binary_out in (
        ("binary", True, True),
        ("json", False, False),
        ("mixed", True, False),
    ):
        tensor = InferInput("image", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels, binary_data=binary_in)
        wanted = [RequestedOutput(name, {"binary_data": binary_out}) for name in NAMES]
        found[f"v2 {form}"] = await _infer(v2, url, model, tensor, wanted)
    file = np.array([image], dtype=object)
    tensor = InferInput("encoded_image", [1], "BYTES")
    tensor.set_data_from_numpy(file)
    found["v2 file"] = await _infer(v2, url, model, tensor, None, {"class": "tabby"})
    instance = {"b64": base64.b64encode(image).decode()}
    several = {"instances": [instance, {"image": instance}, pixels[0].tolist()]}
    found["v1 predict"] = await v1.infer(url, several, model_name=model)
    options = {"class": ["tabby", 281], "method": "layercam", "logits": True}
    found["v1 explain"] = await v1.explain(
        url, model, {"instances": [instance], "parameters": options}
    )
    found["v1 error"] = await _error(v1.infer(url, {"instances": [{}]}, model_name=model))
    tensor = InferInput("image", [1, 1, 1, 3], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 1, 1, 3), np.uint8))
    request = InferRequest("nothing", [tensor])
    found["v2 error"] = await _error(v2.infer(url, request, model_name="nothing"))
    return found


async def _infer(
    client: Any, url: str, model: str, tensor: Any, outputs: Any, parameters: Any = None
) -> dict[str, Any]:
    request = InferRequest(
        model, [tensor], request_id="7", request_outputs=outputs, parameters=parameters
    )
    answer = await client.infer(url, request, model_name=model)
    assert answer.id == "7"
    arrays = {output.name: output.as_numpy() for output in answer.outputs}
    return {
        name: (array.shape, base64.b64encode(array.tobytes()).decode())
        for name, array in arrays.items()
    }


async def _error(call: Any) -> str:
    try:
        await call
    except httpx.HTTPStatusError as error:
        return str(error)
    return "no error"


if __name__ == "__main__":
    address, name, path = sys.argv[1:]
    print(json.dumps(asyncio.run(ask(address, name, Path(path).read_bytes()))))
