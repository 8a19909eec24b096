"""One image from bytes to answer: decode -> queue and batch -> compiled graph -> render."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import ParamSpec, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from gradcam_server.batching import Batcher
from gradcam_server.config import ServeConfig
from gradcam_server.decode import decode_image, view_raw
from gradcam_server.engine import Engine, ServedModel
from gradcam_server.errors import InvalidRequestError
from gradcam_server.geometry import Placement, fit
from gradcam_server.graph import GraphItem, GraphOutput, by_rank
from gradcam_server.labels import ClassLabels
from gradcam_server.render import RenderedMap, render
from gradcam_server.requests import (
    ExplainedImage,
    ExplainRequest,
    Explanation,
    Prediction,
    RawImage,
    Stats,
    TopK,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Pipeline:
    """Explains images. Must be made, used and closed on one event loop.

    Args:
        config: The settings.
        engine: The warm models.
    """

    def __init__(self, config: ServeConfig, engine: Engine) -> None:
        self._max_pixels = config.max_image_pixels
        self._max_targets = config.max_targets
        self._engine = engine
        self._batcher: Batcher[GraphItem, GraphOutput] = Batcher(
            config.max_queue_length, config.max_queue_delay_us / 1e6
        )
        self._workers = ThreadPoolExecutor(config.worker_threads, thread_name_prefix="worker")
        # Each worker is one thread of the machine; OpenCV would start as many again.
        cv2.setNumThreads(1)

    async def explain(
        self, request: ExplainRequest, *, wait_for_place: bool = False
    ) -> ExplainedImage:
        """Predicts and explains one image.

        Args:
            request: The image and what is asked of it.
            wait_for_place: Wait while the queue is full, instead of failing.

        Raises:
            NotFoundError: No such model or layer.
            InvalidRequestError: A bad image, class or option.
            QueueFullError: No place in the queue.
        """
        model = self._engine.find_model(request.model)
        classes = self._choose_classes(request, model.loaded.labels)
        stats = Stats()
        admitted = perf_counter()
        async with self._batcher.admit(wait=wait_for_place) as place:
            graph = await self._engine.find_graph(
                model, request.layer, request.method, len(classes)
            )
            (image, fitted, placement), stats.decode_us = await self._timed(
                self._decode, request, model.loaded.input_size
            )
            answer = await self._batcher.submit(graph, GraphItem(fitted, classes), place)
        output = answer.output
        # What was neither decoding nor computing was waiting: for a thread, for a place in
        # a batch, or for the compiler at a layer's first use.
        elapsed_us = round((perf_counter() - admitted) * 1e6)
        stats.compute_us = answer.compute_us
        stats.queue_us = max(elapsed_us - stats.decode_us - stats.compute_us, 0)
        stats.batch_size, stats.padded_batch_size = answer.batch_size, answer.padded_batch_size
        rendered, stats.render_us = await self._timed(
            lambda: [render(one, image, placement, request.forms) for one in output.maps]
        )
        return ExplainedImage(
            model=model.name,
            image_height=image.shape[0],
            image_width=image.shape[1],
            predictions=_predictions(output, model.loaded.labels, request.prediction_count),
            explanations=_explanations(request, model, graph.layer, output, rendered),
            logits=output.logits,
            stats=stats,
        )

    async def close(self) -> None:
        """Stops the device thread and the workers."""
        await self._batcher.close()
        await asyncio.to_thread(self._workers.shutdown)

    def _choose_classes(self, request: ExplainRequest, labels: ClassLabels) -> list[int]:
        most = min(self._max_targets, len(labels))
        if isinstance(request.targets, TopK):
            if not 0 <= request.targets.k <= most:
                raise InvalidRequestError(
                    "top_k", f"top_k is {request.targets.k}; it must be 0 to {most} here"
                )
            return [by_rank(rank) for rank in range(request.targets.k)]
        if len(request.targets) > most:
            raise InvalidRequestError(
                "targets", f"{len(request.targets)} targets; a request may have {most} here"
            )
        return [labels.index(target) for target in request.targets]

    def _decode(
        self, request: ExplainRequest, input_size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Placement]:
        if isinstance(request.image, RawImage):
            image = view_raw(request.image, self._max_pixels)
        else:
            image = decode_image(request.image, self._max_pixels)
        return image, *fit(image, input_size, request.resize_mode)

    async def _timed(
        self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> tuple[_T, int]:
        def run() -> tuple[_T, int]:
            started = perf_counter()
            result = work(*args, **kwargs)
            return result, round((perf_counter() - started) * 1e6)

        return await asyncio.get_running_loop().run_in_executor(self._workers, run)


def _predictions(output: GraphOutput, labels: ClassLabels, count: int) -> tuple[Prediction, ...]:
    # Stable, so that equal scores come in the order of the classes, as in the graph.
    best = np.argsort(-output.logits, kind="stable")[:count]
    return tuple(
        Prediction(
            int(index),
            labels.name(index),
            float(output.probabilities[index]),
            float(output.logits[index]),
        )
        for index in best
    )


def _explanations(
    request: ExplainRequest,
    model: ServedModel,
    layer: str,
    output: GraphOutput,
    rendered: list[RenderedMap],
) -> tuple[Explanation, ...]:
    return tuple(
        Explanation(
            index=int(index),
            name=model.loaded.labels.name(index),
            score=float(output.logits[index]),
            layer=layer,
            method=request.method,
            raw_min=one.raw_min,
            raw_max=one.raw_max,
            degenerate=one.degenerate,
            heatmaps=one.heatmaps,
        )
        for index, one in zip(output.classes, rendered, strict=True)
    )
