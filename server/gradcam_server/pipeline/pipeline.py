"""One image from bytes to answer: decode -> queue and batch -> compiled graph -> render."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import (
    NO_CLASS,
    PIXELS,
    GraphItem,
    GraphKey,
    GraphOutput,
    GraphTarget,
    by_rank,
)
from gradcam_server.domain.hold_state import HoldState
from gradcam_server.domain.labels import ClassLabels
from gradcam_server.domain.layers import Extent
from gradcam_server.domain.registry import MANY_PASS_METHODS
from gradcam_server.domain.requests import (
    ExplainedImage,
    ExplainRequest,
    Explanation,
    HeatmapFormat,
    LayerFusion,
    Method,
    Prediction,
    Progress,
    RawImage,
    ResizeMode,
    ScoreType,
    Stats,
    TopK,
)
from gradcam_server.domain.schedule import Urgency
from gradcam_server.engine.backend import Backend
from gradcam_server.errors import DeadlineError, InvalidRequestError
from gradcam_server.images.decode import declared_size, decode_image, decode_reduced, view_raw
from gradcam_server.images.geometry import Placement, fit, shrinkage
from gradcam_server.images.render import RenderedMap, count_bytes, needs_image, render
from gradcam_server.images.work_cost import decoding_s, header_s, rendering_s
from gradcam_server.methods.fusion import fuse_layer_cam
from gradcam_server.pipeline.admission import Admission
from gradcam_server.pipeline.budget import BYTES_PER_PIXEL, Need, message_bytes, sending_bytes
from gradcam_server.pipeline.ledger import Claim, Hold, uncounted
from gradcam_server.pipeline.many_pass import Perturbation, count_passes
from gradcam_server.pipeline.sampling import FaithfulnessSampler, Report
from gradcam_server.pipeline.workers import Workers
from gradcam_server.transport.security.caller import current_caller

# The factor p (1 - p) of a probability's gradient: below it, float32 has lost the rest.
_SATURATED = 1e-5
# So many are rendered at the layer's resolution in less time than going to a thread takes.
_FEW_VALUES = 4096
# Of so many bytes the header is found sooner than a thread is reached.
_SHORT_FILE_BYTES = 1 << 16

_T = TypeVar("_T")


class Pipeline:
    """Explains images. Must be made, used and closed on one event loop.

    Args:
        config: The settings.
        backend: The warm models; closed with the pipeline.
        report_faithfulness: Told how faithful sampled answers are.
    """

    def __init__(self, config: ServeConfig, backend: Backend, report_faithfulness: Report) -> None:
        self._config = config
        self._backend = backend
        self._queues = {
            model.id: Admission(config.max_queue_length) for model in backend.catalog.models
        }
        # Their passes wait long: in a queue of their own they keep out only their like.
        self._many_pass_queues = {
            model.id: Admission(config.max_queue_length, "queue of many-pass methods")
            for model in backend.catalog.models
        }
        self._perturbation = Perturbation(backend)
        self._sampler = FaithfulnessSampler(backend, config.sample_share, report_faithfulness)
        self._workers = Workers(config.worker_threads)

    @property
    def queue_length(self) -> int:
        """Requests admitted and not yet on the device, of all models."""
        return sum(queue.length for queue in self._queues.values())

    @property
    def thread_counts(self) -> dict[str, int]:
        """Threads that decode or render now, by state (``Workers.thread_counts``)."""
        return self._workers.thread_counts

    async def reserve(
        self, requests: Sequence[ExplainRequest], claim: Claim, *, wait: bool
    ) -> list[Hold]:
        """Takes the memory that some requests of one message may need.

        Args:
            requests: They.
            claim: Of their message.
            wait: Wait for it, instead of failing.

        Returns:
            What each holds, for ``explain``.

        Raises:
            InvalidRequestError: They can never have so much, or one is wrong.
            NotFoundError: No such model or layer.
            QueueFullError: There is not so much now.
            DeadlineError: The answer would come too late.
        """
        deadlines = [one.deadline for one in requests if one.deadline is not None]
        async with _in_time(min(deadlines, default=None)):
            if not wait:
                claim.receive(message_bytes(sum(_image_bytes(one) for one in requests)))
            needs = [await self._need(one) for one in requests]
            return await claim.reserve([need.total for need in needs], wait=wait)

    async def explain(
        self,
        request: ExplainRequest,
        *,
        wait_for_place: bool = False,
        progress: Progress | None = None,
        hold: Hold | None = None,
    ) -> ExplainedImage:
        """Predicts and explains one image.

        Args:
            request: The image and what is asked of it.
            wait_for_place: Wait while the queue is full, instead of failing.
            progress: Kept up to date, for methods of many passes.
            hold: The memory that it holds, by ``reserve``; None if nobody counts it.

        Raises:
            NotFoundError: No such model or layer.
            InvalidRequestError: A bad image, class or option.
            QueueFullError: No place in the queue, or too long a wait in it.
            DeadlineError: The answer would come too late.
            EngineLostError: The engine died before it answered.
        """
        model, layers, targets, passes = self._resolve(request)
        hold = hold or uncounted()
        progress = progress or Progress()
        progress.total = 1 + passes + (request.method is Method.SCORE_CAM)
        async with _in_time(request.deadline):
            stats = Stats()
            is_many_pass = bool(passes and targets)
            async with AsyncExitStack() as waiting:
                if is_many_pass:
                    queue = self._many_pass_queues[model.id]
                    place = await waiting.enter_async_context(queue.admit(wait=wait_for_place))
                image, fitted, placement, output = await self._first_pass(
                    request, model, layers, targets, stats, hold, wait_for_place
                )
                progress.completed = 1
                if is_many_pass:
                    started = perf_counter()
                    output, compile_us = await self._perturbation.explain(
                        request, model, fitted, targets, output, progress, place
                    )
                    elapsed_us = round((perf_counter() - started) * 1e6)
                    stats.compile_us += compile_us
                    stats.compute_us += max(elapsed_us - compile_us, 0)
                    stats.pass_count = progress.completed
            if request.method is Method.INTEGRATED_GRADIENTS:
                layers = (PIXELS,)
            extent = model.extent(layers[0])
            self._sampler.offer(model, request.method, fitted, output, extent)
            maps = list(_maps(output, model, layers, request.layer_fusion))
            pixels = placement.vertical.image_size * placement.horizontal.image_size
            hold.move(HoldState.RENDERING)
            rendered, stats.render_us = await self._run(
                request.priority,
                rendering_s(pixels, request.forms, len(maps)),
                not needs_image(request.forms)
                and sum(one.values.size for one in maps) <= _FEW_VALUES,
                lambda: [
                    render(one.values, image, placement, request.forms, one.extent) for one in maps
                ],
            )
        hold.move(HoldState.SENDING, _sending_bytes(request, rendered))
        return ExplainedImage(
            model=model.name,
            model_version=model.version,
            image_height=placement.vertical.image_size,
            image_width=placement.horizontal.image_size,
            predictions=_predictions(output, model.labels, request.prediction_count),
            explanations=tuple(
                _explanation(request, model, targets, output, one, its_rendering)
                for one, its_rendering in zip(maps, rendered, strict=True)
            ),
            logits=output.logits,
            probabilities=output.probabilities,
            stats=stats,
            preprocessing=model.preprocessing,
            preprocessing_declared=model.preprocessing_declared,
        )

    async def close(self) -> None:
        """Stops the backend and the workers."""
        await self._sampler.close()
        await self._backend.close()
        await self._workers.close()

    async def _first_pass(
        self,
        request: ExplainRequest,
        model: ServedModel,
        layers: tuple[str, ...],
        targets: Sequence[GraphTarget],
        stats: Stats,
        hold: Hold,
        wait_for_place: bool,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Placement, GraphOutput]:
        """Returns the image, it fitted to the model's input, where it went, and its output.

        The image is the fitted one if nothing asks for all of it.
        """
        key = self._first_key(request, model, layers, len(targets))
        max_wait_s = self._config.max_queue_wait_ms / 1e3
        admitted = perf_counter()
        async with self._queues[model.id].admit(wait=wait_for_place) as place:
            (image, fitted, placement), stats.decode_us = await self._run(
                request.priority,
                decoding_s(request.image),
                isinstance(request.image, RawImage)
                and (request.image.height, request.image.width) == model.input_size,
                lambda: load(
                    request.image,
                    self._config,
                    model.input_size,
                    request.resize_mode,
                    is_whole_needed=bool(targets) and needs_image(request.forms),
                ),
            )
            pixels = placement.vertical.image_size * placement.horizontal.image_size
            self._count_heatmaps(request, model, layers, targets, pixels)
            hold.move(HoldState.WAITING)
            start_by = perf_counter() + max_wait_s if max_wait_s else None
            caller = current_caller.get().key
            urgency = Urgency(request.priority, request.deadline, start_by, caller)
            answer = await self._backend.compute(key, GraphItem(fitted, targets), place, urgency)
        # What was neither decoding, compiling nor computing was waiting: for a thread, or for a
        # place in a batch.
        elapsed_us = round((perf_counter() - admitted) * 1e6)
        batch = answer.batch
        stats.compile_us, stats.compute_us = answer.compile_us, batch.compute_us
        worked_us = stats.decode_us + stats.compile_us + stats.compute_us
        stats.queue_us = max(elapsed_us - worked_us, 0)
        stats.batch_size, stats.padded_batch_size = batch.size, batch.padded_size
        stats.dispatch_reason = batch.reason
        return image, fitted, placement, answer.output

    async def _run(
        self, priority: int, expected_s: float, is_quick: bool, work: Callable[[], _T]
    ) -> tuple[_T, int]:
        """Works here if that is quicker than going to a thread and back."""
        if is_quick:
            return self._workers.timed_here(work)
        caller = current_caller.get().key
        return await self._workers.timed(
            work, caller=caller, priority=priority, expected_s=expected_s
        )

    def _first_key(
        self, request: ExplainRequest, model: ServedModel, layers: tuple[str, ...], targets: int
    ) -> GraphKey:
        """Chooses the graph that predicts; if one pass is enough, it also explains."""
        method = request.method
        if method in MANY_PASS_METHODS or request.smooth_grad is not None:
            layers, method = (model.default_layer,), Method.GRAD_CAM
        return self._backend.catalog.graph_key(model, layers, method, request.score_type, targets)

    def _check_counts(self, request: ExplainRequest) -> None:
        for field, wanted, most in (
            ("layers", len(request.layers), self._config.max_layers),
            ("heatmaps", len(request.forms), self._config.max_formats),
        ):
            if wanted > most:
                raise InvalidRequestError(
                    field, f"{wanted} {field}; a request may have {most} here"
                )

    def _resolve(
        self, request: ExplainRequest
    ) -> tuple[ServedModel, tuple[str, ...], list[GraphTarget], int]:
        """Finds the model, the layers and the classes, and counts the passes."""
        model = self._backend.catalog.find_model(request.model, request.model_version)
        self._check_counts(request)
        layers = model.resolve_layers(request.layers)
        _check_fusion(request, model, layers)
        targets = self._choose_targets(request, model.labels)
        return model, layers, targets, count_passes(request, self._config.max_passes)

    async def _need(self, request: ExplainRequest) -> Need:
        """Estimates what a request may hold, from the header of its image."""
        model, layers, targets, _ = self._resolve(request)
        image, pixels = request.image, 0
        if targets and needs_image(request.forms):
            (height, width), _ = await self._run(
                request.priority,
                header_s(image),
                isinstance(image, RawImage) or len(image) < _SHORT_FILE_BYTES,
                lambda: declared_size(image, self._config.max_image_pixels),
            )
            pixels = height * width
        heatmaps = self._count_heatmaps(request, model, layers, targets, pixels)
        # Raw pixels are a view of the message.
        decoded = 0 if isinstance(image, RawImage) else BYTES_PER_PIXEL * pixels
        return Need(_image_bytes(request), decoded, heatmaps)

    def _count_heatmaps(
        self,
        request: ExplainRequest,
        model: ServedModel,
        layers: tuple[str, ...],
        targets: Sequence[GraphTarget],
        pixels: int,
    ) -> int:
        """Returns the bytes that all heat maps may take, those of the layers' size too.

        Raises:
            InvalidRequestError: They are too many.
        """
        is_integrated = request.method is Method.INTEGRATED_GRADIENTS
        fuses = request.layer_fusion is not LayerFusion.NONE
        maps = len(targets) * (1 if is_integrated or fuses else len(layers))
        most = self._config.max_answer_bytes
        if (wanted := maps * count_bytes(pixels, request.forms)) > most:
            raise InvalidRequestError(
                "heatmaps",
                f"{maps} heat maps of {pixels:,} pixels in {len(request.forms)} forms may take "
                f"{wanted:,} bytes; an answer may have {most:,} here: ask for fewer classes, "
                "layers or forms, for maps at the layer's resolution (raw), or send a smaller "
                "image",
            )
        mapped = (PIXELS,) if is_integrated else layers
        values = max(model.map_size(layer) for layer in mapped)
        # As the graph gives them, and in each form of the layer's size.
        copies = 1 + sum(form.format is HeatmapFormat.RAW_FLOAT32 for form in request.forms)
        return wanted + maps * values * copies * np.dtype(np.float32).itemsize

    def _choose_targets(self, request: ExplainRequest, labels: ClassLabels) -> list[GraphTarget]:
        most = min(self._config.max_targets, len(labels))
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


def _check_fusion(request: ExplainRequest, model: ServedModel, layers: Sequence[str]) -> None:
    if request.layer_fusion is LayerFusion.NONE:
        return
    if len({model.extent(layer) for layer in layers}) > 1:
        raise InvalidRequestError(
            "layer_fusion",
            f"the maps of {' and '.join(layers)} cannot be fused: {model.id} crops or pads between "
            "these layers, so they cover different parts of the image; choose layers on one side "
            "of that",
        )


def load(
    image: bytes | RawImage,
    config: ServeConfig,
    input_size: tuple[int, int],
    mode: ResizeMode,
    *,
    is_whole_needed: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Placement]:
    """Decodes an image and brings it to a model's input size.

    Args:
        image: An encoded file, or pixels.
        config: The settings.
        input_size: (height, width) of the model's input.
        mode: How it is brought there.
        is_whole_needed: Whether all of its pixels are, and not only the model's input.

    Returns:
        The image if all of it is needed, else the fitted one again; the image fitted to the input;
        and where it went. Both images are uint8 RGB, shape (height, width, 3).

    Raises:
        InvalidRequestError: It cannot be decoded, or has too many pixels.
    """
    size = None
    if isinstance(image, RawImage):
        pixels = view_raw(image, config.max_image_pixels)
    elif is_whole_needed or not config.reduced_decode:
        pixels = decode_image(image, config.max_image_pixels)
    else:
        pixels, size = decode_reduced(
            image, config.max_image_pixels, lambda size: shrinkage(size, input_size, mode)
        )
    fitted, placement = fit(pixels, input_size, mode, size)
    if is_whole_needed:
        return pixels, fitted, placement
    if np.may_share_memory(fitted, pixels) and not isinstance(image, RawImage):
        fitted = fitted.copy()  # a view would keep the whole image
    return fitted, fitted, placement


def _image_bytes(request: ExplainRequest) -> int:
    image = request.image
    return len(image.data if isinstance(image, RawImage) else image)


def _sending_bytes(request: ExplainRequest, rendered: Sequence[RenderedMap]) -> int:
    heatmaps = sum(len(heatmap.data) for one in rendered for heatmap in one.heatmaps)
    return sending_bytes(_image_bytes(request), heatmaps)


@asynccontextmanager
async def _in_time(deadline: float | None) -> AsyncIterator[None]:
    """Gives up when a time of ``perf_counter`` has come: the caller has gone, or will have."""
    if deadline is None:
        yield
        return
    try:
        async with asyncio.timeout(deadline - perf_counter()):
            yield
    except TimeoutError:
        raise DeadlineError("the deadline came before the answer") from None


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
    """One map before its ReLU: of which target and layers, and which part of the input."""

    target: int
    layer: str
    values: NDArray[np.float32]
    extent: Extent | None


def _maps(
    output: GraphOutput, model: ServedModel, layers: Sequence[str], fusion: LayerFusion
) -> Iterator[_Map]:
    for target in range(len(output.classes)):
        of_layers = [of_layer[target] for of_layer in output.maps]
        if fusion is LayerFusion.LAYER_CAM:
            extent = model.extent(layers[0])
            yield _Map(target, " + ".join(layers), fuse_layer_cam(of_layers), extent)
        else:
            for layer, values in zip(layers, of_layers, strict=True):
                yield _Map(target, layer, values, model.extent(layer))


def _explanation(
    request: ExplainRequest,
    model: ServedModel,
    targets: Sequence[GraphTarget],
    output: GraphOutput,
    one: _Map,
    rendered: RenderedMap,
) -> Explanation:
    labels = model.labels
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
        extent=one.extent,
    )
