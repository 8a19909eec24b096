"""Load clients of the peers, like ``gradcam_server.bench.load_clients`` of the server."""

import base64
import json
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc
import numpy as np
from numpy.typing import NDArray

from gradcam.inference import grpc_service_pb2 as pb
from gradcam_server.bench.load import LoadClient
from gradcam_server.bench.load_clients import WrongAnswerError
from peers.work import MODEL, RAW_MODEL, decode


@dataclass(frozen=True)
class Http:
    """Makes clients that POST an image.

    Attributes:
        url: The URL.
        body: The body of the request.
        content_type: The type of the body.
        timeout_s: The deadline of each request.
    """

    url: str
    body: bytes
    content_type: str = "application/octet-stream"
    timeout_s: float = 30.0

    def __call__(self) -> LoadClient:
        """Makes a client."""
        return _HttpClient(self)


@dataclass(frozen=True)
class Triton:
    """Makes clients of the Open Inference Protocol over gRPC.

    Attributes:
        address: HOST:PORT.
        request: A serialised ``ModelInferRequest``.
        timeout_s: The deadline of each request.
    """

    address: str
    request: bytes
    timeout_s: float = 30.0

    def __call__(self) -> LoadClient:
        """Makes a client."""
        return _TritonClient(self)


Payload = bytes | NDArray[np.uint8]
"""The bytes of a file, or uint8 RGB (H, W, 3) of the model's input size."""


def plain(address: str, payload: Payload) -> Http:
    """Posts the bytes of the file or of the pixels."""
    return Http(f"http://{address}/", _bytes(payload))


def mosec(address: str, payload: Payload) -> Http:
    """Posts the bytes to mosec's route."""
    return Http(f"http://{address}/inference", _bytes(payload))


def litserve(address: str, payload: Payload) -> Http:
    """Posts JSON with base64."""
    body = json.dumps({"image": base64.b64encode(_bytes(payload)).decode()}).encode()
    return Http(f"http://{address}/predict", body, "application/json")


def triton(address: str, payload: Payload) -> Triton:
    """Sends the file as a tensor of bytes, or the pixels as a tensor."""
    if isinstance(payload, bytes):
        name, datatype, shape = MODEL, "BYTES", [1, 1]
        content = len(payload).to_bytes(4, "little") + payload
    else:
        name, datatype, shape = RAW_MODEL, "UINT8", [1, *payload.shape]
        content = payload.tobytes()
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=shape)
    request = pb.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=[content])
    return Triton(address, request.SerializeToString())


def _bytes(payload: Payload) -> bytes:
    return payload if isinstance(payload, bytes) else payload.tobytes()


class _HttpClient:
    def __init__(self, settings: Http) -> None:
        self._settings = settings
        self.answer = b""

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
            headers={"Content-Type": self._settings.content_type},
        )

    async def explain(self) -> None:
        async with self._session.post(self._settings.url, data=self._settings.body) as answer:
            if answer.status != 200:
                raise WrongAnswerError(f"status {answer.status}")
            self.answer = await answer.read()
        decode(self.answer)

    async def close(self) -> None:
        await self._session.close()


class _TritonClient:
    def __init__(self, settings: Triton) -> None:
        self._settings = settings
        self.answer = b""

    async def open(self) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.aio.insecure_channel(self._settings.address, options)
        path = "/inference.GRPCInferenceService/ModelInfer"
        self._call: Any = self._channel.unary_unary(path)

    async def explain(self) -> None:
        found = await self._call(self._settings.request, timeout=self._settings.timeout_s)
        answer = pb.ModelInferResponse.FromString(found)
        self.answer = answer.raw_output_contents[0][4:]
        decode(self.answer)

    async def close(self) -> None:
        await self._channel.close()
