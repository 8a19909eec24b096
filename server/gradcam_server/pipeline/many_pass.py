"""Explaining by many passes: which graphs a method needs, and running it through them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import PIXELS, GraphItem, GraphKey, GraphOutput, GraphTarget
from gradcam_server.domain.preprocessing import ZERO_COLORS
from gradcam_server.domain.registry import MANY_PASS_METHODS, REGISTRY
from gradcam_server.domain.requests import ExplainRequest, Method, Progress
from gradcam_server.domain.schedule import Turn, Urgency
from gradcam_server.engine.backend import Backend
from gradcam_server.errors import InvalidRequestError
from gradcam_server.methods.many_pass import integrated_gradients, score_cam, smooth_grad
from gradcam_server.pipeline.fair_slots import FairSlots
from gradcam_server.transport.security.caller import current_caller

# More would only share the same part of the device, and hold their images in memory.
_AT_ONCE = 2


def count_passes(request: ExplainRequest, max_passes: int) -> int:
    """Returns how many perturbed images an explanation takes; 0 is the one pass.

    Raises:
        InvalidRequestError: They are more than ``max_passes``, or asked for in vain.
    """
    smooth = request.smooth_grad
    if request.method in MANY_PASS_METHODS:
        if smooth is not None:
            raise InvalidRequestError(
                "smooth_grad", f"SmoothGrad is for one-pass methods, not for {request.method}"
            )
        default = REGISTRY[request.method].default_passes
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
    if not 1 <= passes <= max_passes:
        raise InvalidRequestError(
            field,
            f"this explanation costs {passes} passes; a request may cost 1 to "
            f"{max_passes} here (--max-passes)",
        )
    return passes


class Perturbation:
    """Runs methods of many passes, few requests at a time.

    Args:
        backend: What computes.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._slots = FairSlots(_AT_ONCE)

    async def explain(
        self,
        request: ExplainRequest,
        model: ServedModel,
        fitted: NDArray[np.uint8],
        targets: Sequence[GraphTarget],
        first: GraphOutput,
        progress: Progress,
        turn: Turn,
    ) -> tuple[GraphOutput, int]:
        """Replaces the maps of the first pass by those of a method of many passes.

        Args:
            request: The method, its layers and cost.
            model: The model.
            fitted: The image at the model's input size, uint8 RGB, shape (H, W, 3).
            targets: The classes to explain.
            first: What the first pass found.
            progress: Counts the passes; ``total`` is set.
            turn: Told when the passes begin.

        Returns:
            The output, and how long its graphs were waited for, in microseconds.
        """
        # By index: a rank could mean another class in a perturbed image.
        chosen = [
            dataclasses.replace(target, index=int(index))
            for target, index in zip(targets, first.classes, strict=True)
        ]
        run = _Run(self._backend, request, model, chosen, progress)
        async with self._slots.hold(current_caller.get().key, request.priority):
            turn.give_back()
            output = dataclasses.replace(first, maps=await run.maps(fitted))
        return output, run.compile_us


class _Run:
    """One request."""

    def __init__(
        self,
        backend: Backend,
        request: ExplainRequest,
        model: ServedModel,
        targets: Sequence[GraphTarget],
        progress: Progress,
    ) -> None:
        self._backend, self._request, self._model = backend, request, model
        self._targets, self._progress = targets, progress
        self._compile_us: dict[GraphKey, int] = {}

    @property
    def compile_us(self) -> int:
        """How long the graphs were waited for, in microseconds."""
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
        layers = self._model.resolve_layers(self._request.layers)
        count = self._request.pass_count or REGISTRY[Method.SCORE_CAM].default_passes
        extracting = self._key(Method.GRAD_CAM, layers, channel_count=count)
        scoring = self._key(Method.GRAD_CAM, (self._model.default_layer,))

        async def score(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            return (await self._compute(scoring, pixels)).scores

        channels = await self._compute(extracting, fitted.astype(np.float32))
        zero = np.array(ZERO_COLORS[self._model.preprocessing], np.float32)
        return tuple(
            [
                await score_cam(fitted, one, zero, score, self._model.extent(layer))
                for one, layer in zip(channels.maps, layers, strict=True)
            ]
        )

    async def _smooth_grad(self, fitted: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        smooth = self._request.smooth_grad
        assert smooth is not None
        key = self._key(self._request.method, self._model.resolve_layers(self._request.layers))

        async def explain(pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            return (await self._compute(key, pixels)).maps

        return await smooth_grad(fitted, smooth.sample_count, smooth.noise_level, explain)

    def _key(self, method: Method, layers: tuple[str, ...], channel_count: int = 0) -> GraphKey:
        return GraphKey(
            self._model.id,
            layers,
            method,
            self._request.score_type,
            # Just as many as are asked for: over many passes an idle target would cost much.
            len(self._targets),
            perturbed=True,
            channel_count=channel_count,
        )

    async def _compute(self, key: GraphKey, pixels: NDArray[np.float32]) -> GraphOutput:
        item = GraphItem(pixels, self._targets)
        answer = await self._backend.compute(key, item, None, self._urgency)
        self._progress.completed += 1
        # Passes of one graph wait for it side by side; graphs are needed one after the other.
        known_us = self._compile_us.get(key, 0)
        self._compile_us[key] = max(known_us, answer.compile_us)
        return answer.output

    @property
    def _urgency(self) -> Urgency:
        return Urgency(
            self._request.priority, self._request.deadline, caller=current_caller.get().key
        )
