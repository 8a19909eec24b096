"""The work of every peer: decode and resize by the server's own functions, compute, answer."""

import argparse
import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcam_server.cli.serve import read_arguments
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem, GraphTarget, by_rank
from gradcam_server.domain.requests import ResizeMode
from gradcam_server.images.decode import decode_image
from gradcam_server.images.geometry import fit

TOP = 5
MODEL, RAW_MODEL = "gradcam", "gradcam_raw"


@dataclass(frozen=True)
class Options:
    """The options of a peer's script.

    Attributes:
        port: The port, on 127.0.0.1.
        delay_ms: How long a batch may wait to fill.
        workers: Workers that compute, each with its part of the cores.
        graph: ``server``: the server's graph; ``onnx`` or ``torch``: what a user would write.
        hand_made: The folder of ``peers.hand_made``, for a graph that is not the server's.
        serve: Options of ``gradcam serve``.
    """

    port: int
    delay_ms: float
    workers: int
    graph: str
    hand_made: Path | None
    serve: tuple[str, ...]

    @classmethod
    def read(cls) -> "Options":
        """Reads the command line."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--delay-ms", type=float, default=2.0)
        parser.add_argument("--workers", type=int, default=1)
        parser.add_argument("--graph", choices=GRAPHS, default="server")
        parser.add_argument("--hand-made", type=Path)
        parser.add_argument("serve", nargs="*")
        found = parser.parse_args()
        return cls(**{**vars(found), "serve": tuple(found.serve)})

    @property
    def threads(self) -> int:
        """The threads of each worker."""
        return max(len(os.sched_getaffinity(0)) // self.workers, 1)

    @property
    def config(self) -> ServeConfig:
        """The settings of a worker's graph."""
        own = ["--compute-streams", "1", "--compute-threads", str(self.threads)]
        return read_arguments([*self.serve, *own])

    @property
    def largest_batch(self) -> int:
        """The largest compiled batch size."""
        return max(self.config.batch_sizes)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input of all measured models."""
        return (224, 224)


class Decoder:
    """Makes the model's input of the bytes of a file, or of raw pixels."""

    def __init__(self, options: Options) -> None:
        self._size = options.input_size
        self._max_pixels = options.config.max_image_pixels

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        """Decodes and resizes: uint8 RGB, shape (H, W, 3). As many bytes as that are raw pixels."""
        shape = (*self._size, 3)
        if len(data) == np.prod(shape):
            return np.frombuffer(data, np.uint8).reshape(shape)
        image, _ = fit(decode_image(data, self._max_pixels), self._size, ResizeMode.STRETCH)
        return image


ComputeBatch = Callable[[Sequence[NDArray[np.uint8]]], list[bytes]]
"""Computes images (H, W, 3); returns their encoded answers."""


def make_graph(options: Options) -> ComputeBatch:
    """Makes a worker's graph, warm."""
    return GRAPHS[options.graph](options)


class ServerGraph:
    """The server's default graph."""

    def __init__(self, options: Options) -> None:
        from gradcam_server.engine.engine import Engine

        engine = Engine(options.config)
        engine.warm_up()
        catalog = engine.catalog
        assert catalog.models[0].input_size == options.input_size
        key = next(key for key in catalog.warm if key.model == catalog.models[0].id)
        self._graph: Any = asyncio.run(engine.graph(key))

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[bytes]:
        """Computes images in the batch sizes that the server would choose."""
        targets = [GraphTarget(by_rank(0))]
        items = [GraphItem(image, targets) for image in images]
        answers: list[bytes] = []
        while items:
            take, padded = self._graph.plan(len(items))
            outputs = self._graph.run(items[:take], padded)
            answers += [encode(output.probabilities, output.maps[0][0]) for output in outputs]
            items = items[take:]
        return answers


class HandMadeGraph:
    """A graph as a user would write it: ``runtime`` makes it of a folder and threads."""

    def __init__(self, options: Options, runtime: str) -> None:
        from peers import hand_made

        assert options.hand_made is not None
        make = hand_made.OnnxRuntime if runtime == "onnx" else hand_made.Autograd
        self._run: Callable[[NDArray[np.uint8]], hand_made.Maps] = make(
            options.hand_made, options.threads
        )
        self._run(np.zeros((1, *options.input_size, 3), np.uint8))

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[bytes]:
        """Computes all images in one batch."""
        probabilities, maps = self._run(np.stack(images))
        return [encode(*pair) for pair in zip(probabilities, maps, strict=True)]


GRAPHS: dict[str, Callable[[Options], ComputeBatch]] = {
    "server": ServerGraph,
    "onnx": lambda options: HandMadeGraph(options, "onnx"),
    "torch": lambda options: HandMadeGraph(options, "torch"),
}


def encode(probabilities: NDArray[np.float32], signed_map: NDArray[np.float32]) -> bytes:
    """Writes the best classes, their probabilities and the map: less than the server answers."""
    best = np.argsort(-probabilities)[:TOP]
    heatmap = np.maximum(signed_map, 0)
    parts = (best.astype("<i4"), probabilities[best].astype("<f4"), heatmap.astype("<f4"))
    return b"".join(part.tobytes() for part in parts)


def decode(answer: bytes) -> tuple[int, NDArray[np.float32]]:
    """Reads the best class and the flattened map."""
    best = int(np.frombuffer(answer, "<i4", 1)[0])
    return best, np.frombuffer(answer, "<f4", offset=8 * TOP)
