"""Triton by pytriton: files or tensors of pixels in by its gRPC, Triton's own dynamic batching."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from peers.work import MODEL, RAW_MODEL, Decoder, Options, make_graph

if __name__ == "__main__":
    options = Options.read()
    decode, threads, size = Decoder(options), ThreadPoolExecutor(4), options.input_size

    def from_file(item: Any) -> Any:
        """Decodes the file in a tensor of bytes."""
        return decode(bytes(item[0]))

    def instance(to_image: Callable[[Any], Any]) -> Callable[..., Any]:
        """Makes an instance of the model, with its own graph."""
        graph = make_graph(options)

        @batch
        def explain(image: Any) -> dict[str, Any]:
            """Decodes and computes what Triton batched."""
            images = list(threads.map(to_image, image))
            return {"answer": np.array([[answer] for answer in graph(images)], dtype=object)}

        return cast("Callable[..., Any]", explain)

    config = TritonConfig(
        http_port=options.port + 1,
        grpc_port=options.port,
        metrics_port=options.port + 2,
        http_address="127.0.0.1",
        grpc_address="127.0.0.1",
        allow_metrics=False,
    )
    batcher = DynamicBatcher(max_queue_delay_microseconds=round(options.delay_ms * 1e3))
    with Triton(config=config) as triton:
        for name, tensor, to_image in (
            (MODEL, Tensor(name="image", dtype=np.bytes_, shape=(1,)), from_file),
            (RAW_MODEL, Tensor(name="image", dtype=np.uint8, shape=(*size, 3)), np.asarray),
        ):
            triton.bind(
                name,
                [instance(to_image) for _ in range(options.workers)],
                inputs=[tensor],
                outputs=[Tensor(name="answer", dtype=np.bytes_, shape=(1,))],
                config=ModelConfig(max_batch_size=options.largest_batch, batcher=batcher),
            )
        triton.serve()
