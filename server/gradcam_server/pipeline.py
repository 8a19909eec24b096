"""One image from bytes to answer: decode -> queue and batch -> compiled graph -> render."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from gradcam_server.fusion import fuse_layer_cam
from gradcam_server.geometry import Placement, fit
from gradcam_server.graph import (
    NO_CLASS,
    PIXELS,
    ExplanationGraph,
    GraphItem,
    GraphOutput,
    GraphTarget,
    by_rank,
)
from gradcam_server.labels import ClassLabels
from gradcam_server.many_pass import integrated_gradients, score_cam, smooth_grad
from gradcam_server.models.preprocessing import ZERO_COLORS
from gradcam_server.render import RenderedMap, render
from gradcam_server.requests import (
    MANY_PASS_METHODS,
    ExplainedImage,
    ExplainRequest,
    Explanation,
    LayerFusion,
    Method,
    Prediction,
    Progress,
    RawImage,
    ScoreType,
    Stats,
    TopK,
)

# More would only share the same part of the device, and hold their images in memory.
_MANY_PASS_AT_ONCE = 2

# Score-CAM's channels and Integrated Gradients' steps.
DEFAULT_PASSES = {Method.SCORE_CAM: 64, Method.INTEGRATED_GRADIENTS: 32}

# The factor p (1 - p) of a probability's gradient: below it, float32 has lost the rest.
_SATURATED = 1e-5

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
            config.max_queue_length, config.max_queue_delay_us / 1e6, config.many_pass_share
        )
        self._max_passes = config.max_passes
        self._many_pass_places = asyncio.Semaphore(_MANY_PASS_AT_ONCE)
        self._workers = ThreadPoolExecutor(config.worker_threads, thread_name_prefix="worker")
        # Each worker is one thread of the machine; OpenCV would start as many again.
        cv2.setNumThreads(1)

    async def explain(
        self,
        request: ExplainRequest,
        *,
        wait_for_place: bool = False,
        progress: Progress | None = None,
    ) -> ExplainedImage:
        """Predicts and explains one image.

        Args:
            request: The image and what is asked of it.
            wait_for_place: Wait while the queue is full, instead of failing.
            progress: Kept up to date, for methods of many passes.

        Raises:
            NotFoundError: No such model or layer.
            InvalidRequestError: A bad image, class or option.
            QueueFullError: No place in the queue.
        """
        model = self._engine.find_model(request.model)
        targets = self._choose_targets(request, model.loaded.labels)
        passes = self._count_passes(request)
        progress = progress or Progress()
        progress.total = 1 + passes + (request.method is Method.SCORE_CAM)
        stats = Stats()
        admitted = perf_counter()
        async with self._batcher.admit(wait=wait_for_place) as place:
            graph = await self._engine.find_graph(model, *_first_pass(request, model), len(targets))
            layers = self._engine.resolve_layers(model, request.layers)
            (image, fitted, placement), stats.decode_us = await self._timed(
                self._decode, request, model.loaded.input_size
            )
            answer = await self._batcher.submit(graph, GraphItem(fitted, targets), place)
        output = answer.output
        # What was neither decoding nor computing was waiting: for a thread, for a place in
        # a batch, or for the compiler at a layer's first use.
        elapsed_us = round((perf_counter() - admitted) * 1e6)
        stats.compute_us = answer.compute_us
        stats.queue_us = max(elapsed_us - stats.decode_us - stats.compute_us, 0)
        stats.batch_size, stats.padded_batch_size = answer.batch_size, answer.padded_batch_size
        progress.completed = 1
        if passes and targets:
            async with self._many_pass_places:
                started = perf_counter()
                output = await self._explain_by_many_passes(
                    request, model, layers, fitted, targets, output, progress
                )
            stats.compute_us += round((perf_counter() - started) * 1e6)
            stats.pass_count = progress.completed
        if request.method is Method.INTEGRATED_GRADIENTS:
            layers = (PIXELS,)
        maps = list(_maps(output, layers, request.layer_fusion))
        rendered, stats.render_us = await self._timed(
            lambda: [render(one.values, image, placement, request.forms) for one in maps]
        )
        return ExplainedImage(
            model=model.name,
            image_height=image.shape[0],
            image_width=image.shape[1],
            predictions=_predictions(output, model.loaded.labels, request.prediction_count),
            explanations=tuple(
                _explanation(request, model, targets, output, one, its_rendering)
                for one, its_rendering in zip(maps, rendered, strict=True)
            ),
            logits=output.logits,
            stats=stats,
        )

    async def close(self) -> None:
        """Stops the device thread and the workers."""
        await self._batcher.close()
        await asyncio.to_thread(self._workers.shutdown)

    def _choose_targets(self, request: ExplainRequest, labels: ClassLabels) -> list[GraphTarget]:
        most = min(self._max_targets, len(labels))
        if isinstance(request.targets, TopK):
            if not 0 <= request.targets.k <= most:
                raise InvalidRequestError(
                    "top_k", f"top_k is {request.targets.k}; it must be 0 to {most} here"
                )
            return [GraphTarget(by_rank(rank)) for rank in range(request.targets.k)]
        if len(request.targets) > most:
            raise InvalidRequestError(
                "targets", f"{len(request.targets)} targets; a request may have {most} here"
            )
        return [
            GraphTarget(
                labels.index(target.name),
                NO_CLASS if target.against is None else labels.index(target.against),
            )
            for target in request.targets
        ]

    def _count_passes(self, request: ExplainRequest) -> int:
        """Returns how many perturbed images an explanation takes; 0 is the one pass."""
        smooth = request.smooth_grad
        if request.method in MANY_PASS_METHODS:
            if smooth is not None:
                raise InvalidRequestError(
                    "smooth_grad", f"SmoothGrad is for one-pass methods, not for {request.method}"
                )
            default = DEFAULT_PASSES[request.method]
            passes = default if request.pass_count is None else request.pass_count
            if request.method is Method.SCORE_CAM:
                passes *= max(len(request.layers), 1)  # so many channels of each layer
            field = "pass_count"
        elif request.pass_count is not None:
            raise InvalidRequestError(
                "pass_count", f"pass_count is for {', '.join(sorted(MANY_PASS_METHODS))}"
            )
        elif smooth is not None:
            passes, field = smooth.sample_count, "smooth_grad.sample_count"
        else:
            return 0
        if not 1 <= passes <= self._max_passes:
            raise InvalidRequestError(
                field,
                f"this explanation costs {passes} passes; a request may cost 1 to "
                f"{self._max_passes} here (--max-passes)",
            )
        return passes

    async def _explain_by_many_passes(
        self,
        request: ExplainRequest,
        model: ServedModel,
        layers: tuple[str, ...],
        fitted: NDArray[np.uint8],
        targets: Sequence[GraphTarget],
        first: GraphOutput,
        progress: Progress,
    ) -> GraphOutput:
        """Replaces the maps of the first pass by those of a method of many passes."""
        # By index: a rank could mean another class in a perturbed image.
        chosen = [
            dataclasses.replace(target, index=int(index))
            for target, index in zip(targets, first.classes, strict=True)
        ]

        async def run(graph: ExplanationGraph, pixels: NDArray[np.float32]) -> GraphOutput:
            answer = await self._batcher.submit(graph, GraphItem(pixels, chosen))
            progress.completed += 1
            return answer.output

        async def find(
            method: Method, layers: tuple[str, ...], channel_count: int = 0
        ) -> ExplanationGraph:
            return await self._engine.find_perturbed_graph(
                model, layers, method, request.score_type, len(chosen), channel_count
            )

        passes = self._count_passes(request)
        maps: tuple[NDArray[np.float32], ...]
        match request.method:
            case Method.INTEGRATED_GRADIENTS:
                graph = await find(Method.HIRES_CAM, (PIXELS,))

                async def attribute(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
                    return (await run(graph, pixels)).maps[0]

                maps = (await integrated_gradients(fitted, passes, attribute),)
            case Method.SCORE_CAM:
                scoring = await find(Method.GRAD_CAM, (model.default_layer,))
                extracting = await find(Method.GRAD_CAM, layers, passes // len(layers))
                channels = await run(extracting, fitted.astype(np.float32))
                zero = np.array(ZERO_COLORS[model.loaded.preprocessing], np.float32)

                async def score(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
                    return (await run(scoring, pixels)).scores

                maps = tuple([await score_cam(fitted, one, zero, score) for one in channels.maps])
            case _:
                assert request.smooth_grad is not None
                noisy = await find(request.method, layers)

                async def explain(pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
                    return (await run(noisy, pixels)).maps

                maps = await smooth_grad(fitted, passes, request.smooth_grad.noise_level, explain)
        return dataclasses.replace(first, maps=maps)

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


def _first_pass(
    request: ExplainRequest, model: ServedModel
) -> tuple[tuple[str, ...], Method, ScoreType]:
    """Chooses the graph that predicts; if one pass is enough, it also explains."""
    if request.method in MANY_PASS_METHODS or request.smooth_grad is not None:
        return (model.default_layer,), Method.GRAD_CAM, request.score_type
    return request.layers, request.method, request.score_type


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


@dataclass(frozen=True)
class _Map:
    """One map before its ReLU: of which target, and of which layers."""

    target: int
    layer: str
    values: NDArray[np.float32]


def _maps(output: GraphOutput, layers: Sequence[str], fusion: LayerFusion) -> Iterator[_Map]:
    for target in range(len(output.classes)):
        of_layers = [of_layer[target] for of_layer in output.maps]
        if fusion is LayerFusion.LAYER_CAM:
            yield _Map(target, " + ".join(layers), fuse_layer_cam(of_layers))
        else:
            for layer, values in zip(layers, of_layers, strict=True):
                yield _Map(target, layer, values)


def _explanation(
    request: ExplainRequest,
    model: ServedModel,
    targets: Sequence[GraphTarget],
    output: GraphOutput,
    one: _Map,
    rendered: RenderedMap,
) -> Explanation:
    labels = model.loaded.labels
    index, against = int(output.classes[one.target]), targets[one.target].against
    probability = float(output.probabilities[index])
    return Explanation(
        index=index,
        name=labels.name(index),
        score=float(output.scores[one.target]),
        layer=one.layer,
        method=request.method,
        raw_min=rendered.raw_min,
        raw_max=rendered.raw_max,
        degenerate=rendered.degenerate,
        heatmaps=rendered.heatmaps,
        score_type=request.score_type,
        saturated=request.score_type is ScoreType.PROBABILITY
        and probability * (1 - probability) < _SATURATED,
        against=None if against == NO_CLASS else against,
        against_name="" if against == NO_CLASS else labels.name(against),
    )
