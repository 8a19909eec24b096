"""mosec: bytes in and out; a process that decodes, and others that compute batches."""

import math
import os
from typing import Any

import mosec
import numpy as np
from numpy.typing import NDArray

from peers.work import Decoder, Options, make_graph


class Decode(mosec.Worker):
    """The first stage."""

    def __init__(self) -> None:
        self._decode = Decoder(OPTIONS)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: Any) -> NDArray[np.uint8]:
        return self._decode(data)


class Compute(mosec.Worker):
    """The second stage."""

    def __init__(self) -> None:
        self._graph = make_graph(OPTIONS)

    def forward(self, data: Any) -> list[bytes]:
        return self._graph(data)

    def serialize(self, data: bytes) -> bytes:
        return data


OPTIONS = Options.read()

if __name__ == "__main__":
    # mosec and its workers read --port from the command line.
    os.environ.update(MOSEC_ADDRESS="127.0.0.1", MOSEC_TIMEOUT="60000", MOSEC_LOG_LEVEL="warning")
    server = mosec.Server()
    server.append_worker(Decode)
    server.append_worker(
        Compute,
        num=OPTIONS.workers,
        max_batch_size=OPTIONS.largest_batch,
        max_wait_time=max(math.ceil(OPTIONS.delay_ms), 1),
    )
    server.run()
