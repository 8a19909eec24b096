"""Load clients of the peers, like ``gradcam_server.bench.load_clients`` of the server."""

import base64
import json
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc

from gradcam.inference import grpc_service_pb2 as pb
from gradcam_server.bench.load import LoadClient
from gradcam_server.bench.load_clients import WrongAnswerError
from peers.work import MODEL, decode


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


def plain(address: str, image: bytes) -> Http:
    """Posts the file as it is."""
    return Http(f"http://{address}/", image)


def mosec(address: str, image: bytes) -> Http:
    """Posts the file as it is, to mosec's route."""
    return Http(f"http://{address}/inference", image)


def litserve(address: str, image: bytes) -> Http:
    """Posts JSON with base64."""
    body = json.dumps({"image": base64.b64encode(image).decode()}).encode()
    return Http(f"http://{address}/predict", body, "application/json")


def triton(address: str, image: bytes) -> Triton:
    """Sends the file as a tensor of bytes."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1, 1])
    content = len(image).to_bytes(4, "little") + image
    request = pb.ModelInferRequest(model_name=MODEL, inputs=[tensor], raw_input_contents=[content])
    return Triton(address, request.SerializeToString())


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
