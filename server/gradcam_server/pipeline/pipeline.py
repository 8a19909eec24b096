"""One image from bytes to answer: decode -> queue and batch -> compiled graph -> render."""

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem, GraphOutput
from gradcam_server.domain.hold_state import HoldState
from gradcam_server.domain.requests import (
    ExplainedImage,
    ExplainRequest,
    Method,
    Progress,
    RawImage,
    ResizeMode,
    Stats,
)
from gradcam_server.domain.schedule import OnDispatch, Urgency
from gradcam_server.engine.backend import Backend
from gradcam_server.errors import DeadlineError
from gradcam_server.images.decode import declared_size, decode_image, decode_reduced, view_raw
from gradcam_server.images.geometry import Placement, fit, shrinkage
from gradcam_server.images.render import RenderedMap, render
from gradcam_server.images.work_cost import decoding_s, header_s, rendering_s
from gradcam_server.pipeline.admission import Admission
from gradcam_server.pipeline.backlog import Backlog, Work
from gradcam_server.pipeline.budget import (
    BYTES_PER_PIXEL,
    Need,
    answer_bytes,
    heatmap_bytes,
    image_bytes,
    message_bytes,
)
from gradcam_server.pipeline.ledger import Claim, Hold, uncounted
from gradcam_server.pipeline.many_pass import ManyPass
from gradcam_server.pipeline.sampling import FaithfulnessSampler, Report
from gradcam_server.pipeline.translation import (
    ClassMap,
    Resolved,
    Resolver,
    class_maps,
    make_answer,
)
from gradcam_server.pipeline.workers import Workers

# Maps of so few values are rendered in less time than going to a thread takes.
_FEW_VALUES = 4096
# In files of so few bytes the header is found in less time than going to a thread takes.
_SHORT_FILE_BYTES = 1 << 16

_T = TypeVar("_T")


class LoadedImage(NamedTuple):
    """A decoded image and the model's input that is made of it. Both are uint8 RGB.

    Attributes:
        pixels: The whole image, shape (height, width, 3); ``fitted`` if it is not needed.
        fitted: The model's input, shape (H, W, 3).
        placement: Where the image lies in the input.
    """

    pixels: NDArray[np.uint8]
    fitted: NDArray[np.uint8]
    placement: Placement

    @property
    def pixel_count(self) -> int:
        """The number of pixels of the image as it was sent."""
        return self.placement.vertical.image_size * self.placement.horizontal.image_size


class Pipeline:
    """Explains images. Must be made, used and closed on one event loop.

    Args:
        config: The settings.
        backend: Computes; closed with the pipeline.
        report_faithfulness: Called with the faithfulness of sampled answers.
    """

    def __init__(self, config: ServeConfig, backend: Backend, report_faithfulness: Report) -> None:
        self._config = config
        self._backend = backend
        self._queues = {
            model.id: Admission(config.max_queue_length) for model in backend.catalog.models
        }
        # Their passes wait long: in a queue of their own they do not keep out one-pass requests.
        self._many_pass_queues = {
            model.id: Admission(config.max_queue_length, "queue of many-pass methods")
            for model in backend.catalog.models
        }
        self._backlog = Backlog()
        self._many_pass = ManyPass(backend)
        self._sampler = FaithfulnessSampler(backend, config.sample_share, report_faithfulness)
        self._workers = Workers(config.worker_threads)
        self._resolve = Resolver(config)

    @property
    def queue_lengths(self) -> dict[str, int]:
        """Requests admitted and not yet on the device, of all models, by queue."""
        queues = {"one_pass": self._queues, "many_pass": self._many_pass_queues}
        return {
            name: sum(queue.length for queue in of_models.values())
            for name, of_models in queues.items()
        }

    @property
    def thread_counts(self) -> dict[str, int]:
        """Threads that decode or render now, by state (``Workers.thread_counts``)."""
        return self._workers.thread_counts

    async def reserve(
        self, requests: Sequence[ExplainRequest], claim: Claim, *, wait: bool
    ) -> list["Reserved"]:
        """Reserves the memory that the requests of one message may need.

        Args:
            requests: The requests.
            claim: The claim of their message.
            wait: Wait for memory instead of failing.

        Returns:
            A reservation for each request, for ``explain``.

        Raises:
            InvalidRequestError: A request is wrong, or they can never have so much memory.
            NotFoundError: No such model or layer.
            QueueFullError: There is too little memory now.
            DeadlineError: The answer would come too late.
        """
        deadlines = [request.deadline for request in requests if request.deadline is not None]
        async with _in_time(min(deadlines, default=None)):
            if not wait:
                claim.receive(message_bytes(sum(map(image_bytes, requests))))
            resolved = [self._resolve(request, self._backend.catalog) for request in requests]
            needs = [
                await self._need(request, its_resolved)
                for request, its_resolved in zip(requests, resolved, strict=True)
            ]
            holds = await claim.reserve([need.total for need in needs], wait=wait)
        return [Reserved(self, *both) for both in zip(resolved, holds, strict=True)]

    async def explain(
        self,
        request: ExplainRequest,
        *,
        wait_for_slot: bool = False,
        progress: Progress | None = None,
        reserved: "Reserved | None" = None,
    ) -> ExplainedImage:
        """Predicts and explains one image.

        Args:
            request: The image and the options.
            wait_for_slot: Wait while the queue is full, instead of failing.
            progress: Kept up to date, for methods of many passes.
            reserved: The reservation by ``reserve``; None if its memory is not counted.

        Raises:
            NotFoundError: No such model or layer.
            InvalidRequestError: A bad image, class or option.
            QueueFullError: The queue is full, or the wait in it would be, or was, too long.
            DeadlineError: The answer would come too late, even if nothing waited before it.
            EngineLostError: The engine died before it answered.
        """
        hold = uncounted() if reserved is None else reserved.hold
        if reserved is None or reserved.pipeline is not self:  # there was a reload in between
            resolved = self._resolve(request, self._backend.catalog)
        else:
            resolved = reserved.resolved
        progress = progress or Progress()
        progress.total = 1 + resolved.passes + (request.method is Method.SCORE_CAM)
        is_many_pass, model = resolved.is_many_pass, resolved.model
        queue = (self._many_pass_queues if is_many_pass else self._queues)[model.id]
        work = Work(request.priority, request.caller, model.image_s, model.alone_s)
        if not wait_for_slot:
            self._backlog.check(work, request.deadline)
        async with _in_time(request.deadline):
            stats, asked_at = Stats(), perf_counter()
            async with queue.admit(request.caller, wait=wait_for_slot) as slot:
                with self._backlog.holding(work, learn=resolved.is_warm):
                    image, output = await self._first_pass(
                        request,
                        resolved,
                        stats,
                        hold,
                        asked_at,
                        None if is_many_pass else slot.release,
                    )
                progress.completed = 1
                if is_many_pass:
                    started = perf_counter()
                    output, compile_us = await self._many_pass.explain(
                        request, resolved, image.fitted, output, progress, slot.release
                    )
                    elapsed_us = round((perf_counter() - started) * 1e6)
                    stats.compile_us += compile_us
                    stats.compute_us += max(elapsed_us - compile_us, 0)
                    stats.pass_count = progress.completed
            self._sampler.offer(model, request.method, image.fitted, output, resolved.extents[0])
            maps = list(class_maps(output, resolved, request.layer_fusion))
            hold.move(HoldState.RENDERING)
            rendered, stats.render_us = await self._render(request, resolved, image, maps)
        hold.move(HoldState.SENDING, answer_bytes(request, rendered))
        return make_answer(request, resolved, output, maps, rendered, image.placement, stats)

    async def close(self) -> None:
        """Stops the backend and the workers."""
        await self._sampler.close()
        await self._backend.close()
        await self._workers.close()

    async def _first_pass(
        self,
        request: ExplainRequest,
        resolved: Resolved,
        stats: Stats,
        hold: Hold,
        asked_at: float,
        on_dispatch: OnDispatch | None,
    ) -> tuple[LoadedImage, GraphOutput]:
        """Decodes the image and computes it once; ``stats`` gets the times and the batch."""
        sent, input_size = request.image, resolved.model.input_size

        def work() -> LoadedImage:
            return load(
                sent,
                self._config,
                input_size,
                request.resize_mode,
                is_whole_needed=resolved.needs_image,
            )

        if isinstance(sent, RawImage) and (sent.height, sent.width) == input_size:
            image, stats.decode_us = self._workers.timed_here(work)
        else:
            image, stats.decode_us = await self._on_thread(request, decoding_s(sent), work)
        if resolved.needs_image:
            heatmap_bytes(request, resolved, image.pixel_count, self._config.max_answer_bytes)
        hold.move(HoldState.WAITING)
        max_wait_s = self._config.max_queue_wait_ms / 1e3
        start_by = perf_counter() + max_wait_s if max_wait_s else None
        answer = await self._backend.compute(
            resolved.graph,
            GraphItem(image.fitted, resolved.targets),
            on_dispatch,
            Urgency(request.priority, request.deadline, start_by, request.caller),
        )
        # All time beside decoding, compiling and computing was waiting: for a thread, or for a
        # place in a batch.
        elapsed_us = round((perf_counter() - asked_at) * 1e6)
        batch = answer.batch
        stats.compile_us, stats.compute_us = answer.compile_us, batch.compute_us
        worked_us = stats.decode_us + stats.compile_us + stats.compute_us
        stats.queue_us = max(elapsed_us - worked_us, 0)
        stats.batch_size, stats.padded_batch_size = batch.size, batch.padded_size
        stats.dispatch_reason = batch.reason
        return image, answer.output

    async def _render(
        self,
        request: ExplainRequest,
        resolved: Resolved,
        image: LoadedImage,
        maps: Sequence[ClassMap],
    ) -> tuple[list[RenderedMap], int]:
        """Returns the rendered maps, and the time that it took, in microseconds."""
        pixels, placement, forms = image.pixels, image.placement, request.forms

        def work() -> list[RenderedMap]:
            return [
                render(class_map.values, pixels, placement, forms, class_map.extent)
                for class_map in maps
            ]

        value_count = sum([class_map.values.size for class_map in maps])
        if not resolved.needs_image and value_count <= _FEW_VALUES:
            return self._workers.timed_here(work)
        return await self._on_thread(
            request, rendering_s(image.pixel_count, forms, len(maps)), work
        )

    async def _on_thread(
        self, request: ExplainRequest, expected_s: float, work: Callable[[], _T]
    ) -> tuple[_T, int]:
        """Runs work of the request's caller on a thread; returns as ``Workers.timed``."""
        return await self._workers.timed(
            work, caller=request.caller, priority=request.priority, expected_s=expected_s
        )

    async def _need(self, request: ExplainRequest, resolved: Resolved) -> Need:
        """Estimates the memory that a request may hold, from the header of its image."""
        image, pixels = request.image, 0
        if resolved.needs_image:

            def work() -> tuple[int, int]:
                return declared_size(image, self._config.max_image_pixels)

            if isinstance(image, RawImage) or len(image) < _SHORT_FILE_BYTES:
                height, width = work()
            else:
                (height, width), _ = await self._on_thread(request, header_s(image), work)
            pixels = height * width
        heatmaps = heatmap_bytes(request, resolved, pixels, self._config.max_answer_bytes)
        # Raw pixels are a view of the message.
        decoded = 0 if isinstance(image, RawImage) else BYTES_PER_PIXEL * pixels
        return Need(image_bytes(request), decoded, heatmaps)


class Reserved(NamedTuple):
    """A request whose memory is reserved. ``Pipeline.reserve`` makes it, for ``explain``.

    Attributes:
        pipeline: The pipeline that made it.
        resolved: The request's model, layers and classes.
        hold: The memory that it holds.
    """

    pipeline: Pipeline
    resolved: Resolved
    hold: Hold


def load(
    image: bytes | RawImage,
    config: ServeConfig,
    input_size: tuple[int, int],
    mode: ResizeMode,
    *,
    is_whole_needed: bool,
) -> LoadedImage:
    """Decodes an image and fits it to a model's input.

    Args:
        image: An encoded file, or pixels.
        config: The settings.
        input_size: (height, width) of the model's input.
        mode: How the image is fitted.
        is_whole_needed: Whether all of its pixels are needed, not only the model's input.

    Raises:
        InvalidRequestError: The image cannot be decoded, or has too many pixels.
    """
    size, max_pixels = None, config.max_image_pixels
    if isinstance(image, RawImage):
        pixels = view_raw(image, max_pixels)
    elif is_whole_needed or not config.reduced_decode:
        pixels = decode_image(image, max_pixels)
    else:
        pixels, size = decode_reduced(
            image, max_pixels, lambda size: shrinkage(size, input_size, mode)
        )
    fitted, placement = fit(pixels, input_size, mode, size)
    if is_whole_needed:
        return LoadedImage(pixels, fitted, placement)
    if not isinstance(image, RawImage) and np.may_share_memory(fitted, pixels):
        fitted = fitted.copy()  # a view would keep the whole image
    return LoadedImage(fitted, fitted, placement)


class _in_time:  # noqa: N801 - it is used as a function
    """Cancels its block at a time of ``perf_counter``, and raises DeadlineError then."""

    def __init__(self, deadline: float | None) -> None:
        in_s = None if deadline is None else deadline - perf_counter()
        self._timeout = None if in_s is None else asyncio.timeout(in_s)

    async def __aenter__(self) -> None:
        if self._timeout is not None:
            await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        if self._timeout is not None:
            try:
                await self._timeout.__aexit__(*error)
            except TimeoutError:
                raise DeadlineError("the deadline came before the answer") from None
