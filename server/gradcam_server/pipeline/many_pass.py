"""Runs the methods of many passes on the backend: the graphs that each method needs."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.graph_io import PIXELS, GraphItem, GraphKey, GraphOutput, GraphTarget
from gradcam_server.domain.preprocessing import ZERO_COLORS
from gradcam_server.domain.registry import REGISTRY
from gradcam_server.domain.requests import ExplainRequest, Method, Progress
from gradcam_server.domain.schedule import OnDispatch, Urgency
from gradcam_server.engine.backend import Backend
from gradcam_server.methods.many_pass import integrated_gradients, score_cam, smooth_grad
from gradcam_server.pipeline.fair_slots import FairSlots
from gradcam_server.pipeline.translation import Resolved

# More requests at once would share the same part of the device, and hold more memory.
_MAX_REQUESTS = 2


class ManyPass:
    """Runs methods of many passes, few requests at a time.

    Args:
        backend: Computes the passes.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._slots = FairSlots(_MAX_REQUESTS)

    async def explain(
        self,
        request: ExplainRequest,
        resolved: Resolved,
        fitted: NDArray[np.uint8],
        first: GraphOutput,
        progress: Progress,
        on_dispatch: OnDispatch,
    ) -> tuple[GraphOutput, int]:
        """Replaces the maps of the first pass by those of a method of many passes.

        Args:
            request: The method and its options.
            resolved: The model, layers and classes.
            fitted: The image at the model's input size, uint8 RGB, shape (H, W, 3).
            first: The output of the first pass.
            progress: Counts the passes; ``total`` is set.
            on_dispatch: Called when the passes begin.

        Returns:
            The output, and the time that the request waited for its graphs, in microseconds.
        """
        # By index: a rank could mean another class in a perturbed image.
        chosen = [
            dataclasses.replace(target, index=int(index))
            for target, index in zip(resolved.targets, first.classes, strict=True)
        ]
        run = _Run(self._backend, request, resolved, chosen, progress)
        async with self._slots.hold(request.caller, request.priority):
            on_dispatch()
            output = first._replace(maps=await run.maps(fitted))
        return output, run.compile_us


class _Run:
    """The passes of one request."""

    def __init__(
        self,
        backend: Backend,
        request: ExplainRequest,
        resolved: Resolved,
        targets: Sequence[GraphTarget],
        progress: Progress,
    ) -> None:
        self._backend, self._request, self._resolved = backend, request, resolved
        self._model = resolved.model
        self._targets, self._progress = targets, progress
        self._compile_us: dict[GraphKey, int] = {}

    @property
    def compile_us(self) -> int:
        """The time that the request waited for its graphs, in microseconds."""
        return sum(self._compile_us.values())

    async def maps(self, fitted: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        match self._request.method:
            case Method.INTEGRATED_GRADIENTS:
                return await self._integrated_gradients(fitted)
            case Method.SCORE_CAM:
                return await self._score_cam(fitted)
            case _:
                return await self._smooth_grad(fitted)

    async def _integrated_gradients(
        self, fitted: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], ...]:
        key = self._key(Method.HIRES_CAM, (PIXELS,))

        async def attribute(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            return (await self._compute(key, pixels)).maps[0]

        steps = self._progress.total - self._progress.completed
        return (await integrated_gradients(fitted, steps, attribute),)

    async def _score_cam(self, fitted: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        layers = self._resolved.layers
        count = self._request.pass_count or REGISTRY[Method.SCORE_CAM].default_passes
        extracting = self._key(Method.GRAD_CAM, layers, channel_count=count)
        scoring = self._key(Method.GRAD_CAM, (self._model.default_layer,))

        async def score(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            return (await self._compute(scoring, pixels)).scores

        channels = await self._compute(extracting, fitted.astype(np.float32))
        zero = np.array(ZERO_COLORS[self._model.preprocessing], np.float32)
        return tuple(
            [
                await score_cam(fitted, maps, zero, score, self._model.extent(layer))
                for maps, layer in zip(channels.maps, layers, strict=True)
            ]
        )

    async def _smooth_grad(self, fitted: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        smooth = self._request.smooth_grad
        assert smooth is not None
        key = self._key(self._request.method, self._resolved.layers)

        async def explain(pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            return (await self._compute(key, pixels)).maps

        return await smooth_grad(fitted, smooth.sample_count, smooth.noise_level, explain)

    def _key(self, method: Method, layers: tuple[str, ...], channel_count: int = 0) -> GraphKey:
        return GraphKey(
            self._model.id,
            layers,
            method,
            self._request.score_type,
            # No idle targets: over many passes they would cost much.
            len(self._targets),
            perturbed=True,
            channel_count=channel_count,
        )

    async def _compute(self, key: GraphKey, pixels: NDArray[np.float32]) -> GraphOutput:
        item = GraphItem(pixels, self._targets)
        answer = await self._backend.compute(key, item, None, self._urgency)
        self._progress.completed += 1
        # Passes of one graph wait for it together; graphs are needed one after the other.
        known_us = self._compile_us.get(key, 0)
        self._compile_us[key] = max(known_us, answer.compile_us)
        return answer.output

    @property
    def _urgency(self) -> Urgency:
        request = self._request
        return Urgency(request.priority, request.deadline, caller=request.caller)
