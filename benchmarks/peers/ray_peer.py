"""Ray Serve: bytes in and out over HTTP; decodes in threads, computes in batches."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# On loopback, for one run: no token is stored, and no usage is reported.
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from peers.work import Decoder, Options, make_graph

OPTIONS = Options.read()


class Replica:
    """A replica: it has its part of the cores."""

    def __init__(self, options: Options) -> None:
        self._threads, self._device = ThreadPoolExecutor(4), ThreadPoolExecutor(1)
        self._decode = Decoder(options)
        self._graph = self._device.submit(
            make_graph, options
        ).result()  # this thread runs an event loop

    async def __call__(self, request: Request) -> Response:
        data = await request.body()
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._threads, self._decode, data)
        return Response(await self.compute(image))

    @serve.batch(max_batch_size=OPTIONS.largest_batch, batch_wait_timeout_s=OPTIONS.delay_ms / 1e3)
    async def compute(self, images: Any) -> list[bytes]:
        loop = asyncio.get_running_loop()
        given: list[NDArray[np.uint8]] = images
        return await loop.run_in_executor(self._device, self._graph, given)


if __name__ == "__main__":
    # A new cluster, not one that runs already.
    ray.init("local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": OPTIONS.port})
    deployment: Any = serve.deployment(Replica)
    deployment = deployment.options(
        num_replicas=OPTIONS.workers, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0}
    )
    serve.run(deployment.bind(OPTIONS), route_prefix="/")
    threading.Event().wait()
