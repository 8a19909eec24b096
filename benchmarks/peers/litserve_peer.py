"""LitServe: JSON with base64 in, as its documentation sends images; bytes out."""

import base64
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from peers.work import Decoder, Options, make_graph


class Api(litserve.LitAPI):
    """An inference process, which decodes and computes."""

    def __init__(self, options: Options) -> None:
        super().__init__(max_batch_size=options.largest_batch, batch_timeout=options.delay_ms / 1e3)
        self._options = options

    def setup(self, device: Any) -> None:  # noqa: ARG002 - LitServe's signature
        self._decode, self._compute = Decoder(self._options), make_graph(self._options)

    def decode_request(self, request: Request) -> NDArray[np.uint8]:
        return self._decode(base64.b64decode(request["image"]))

    def batch(self, inputs: Any) -> Any:
        return list(inputs)

    def predict(self, x: Any) -> list[bytes]:
        # LitServe passes a batch of one without its list.
        return self._compute(x if isinstance(x, list) else [x])

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Response:
        return Response(output if isinstance(output, bytes) else output[0])


if __name__ == "__main__":
    options = Options.read()
    server = litserve.LitServer(
        Api(options),
        accelerator="cpu",
        devices=1,
        workers_per_device=options.workers,
        timeout=60,
    )
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="error")
