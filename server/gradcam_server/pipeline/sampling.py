"""Measures insertion and deletion of a share of live traffic: how faithful the maps are."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput, GraphTarget
from gradcam_server.domain.layers import Extent
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.domain.schedule import Urgency
from gradcam_server.engine.backend import Backend
from gradcam_server.images.geometry import enlarge
from gradcam_server.methods.faithfulness import (
    auc,
    deletion_images,
    insertion_images,
    is_degenerate,
)

logger = logging.getLogger(__name__)

STEPS = 10
LOWEST_PRIORITY = 2**31 - 1

Report = Callable[[str, Method, float, float], None]
"""Called with the model's id, the method, and the areas under both curves, insertion first."""


class FaithfulnessSampler:
    """Measures some answers in the background, one after the other.

    An answer that comes while another is measured is skipped, so the cost is bounded:
    2 * (STEPS + 1) background passes at a time.

    Args:
        backend: Computes the variants of images.
        share: The part of the answers to measure, 0 to 1.
        report: Called with each result.
    """

    def __init__(self, backend: Backend, share: float, report: Report) -> None:
        self._backend, self._share, self._report = backend, share, report
        self._task: asyncio.Task[None] | None = None

    def offer(
        self,
        model: ServedModel,
        method: Method,
        fitted: NDArray[np.uint8],
        output: GraphOutput,
        extent: Extent | None = None,
    ) -> None:
        """Measures, by chance, the map of an answer's first target at its first layer.

        Args:
            model: The model.
            method: The method of the map.
            fitted: The image at the model's input size, uint8 RGB, shape (H, W, 3).
            output: The answer.
            extent: The part of the input that the map covers; None is the whole input.
        """
        if not self._share or not len(output.classes) or random.random() >= self._share:  # noqa: S311
            return
        if self._task is None or self._task.done():
            measuring = self._measure(model, method, fitted, output, extent)
            self._task = asyncio.create_task(measuring)

    async def close(self) -> None:
        """Stops measuring."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _measure(
        self,
        model: ServedModel,
        method: Method,
        fitted: NDArray[np.uint8],
        output: GraphOutput,
        extent: Extent | None,
    ) -> None:
        values = np.nan_to_num(np.maximum(output.maps[0][0], 0), posinf=0)
        heatmap = enlarge(values, (fitted.shape[0], fitted.shape[1]), extent)
        if is_degenerate(heatmap):
            return
        target = int(output.classes[0])
        try:
            insertion, deletion = await asyncio.gather(
                self._auc(model, target, insertion_images(fitted, heatmap, STEPS)),
                self._auc(model, target, deletion_images(fitted, heatmap, STEPS)),
            )
        except Exception as error:  # noqa: BLE001 - no request waits for it
            logger.warning("An answer could not be measured: %r", error)
        else:
            self._report(model.id, method, insertion, deletion)

    async def _auc(
        self, model: ServedModel, target: int, images: Iterable[NDArray[np.uint8]]
    ) -> float:
        layers = (model.default_layer,)
        key = GraphKey(model.id, layers, Method.GRAD_CAM, ScoreType.LOGIT, 1, perturbed=True)
        variants = await asyncio.to_thread(
            lambda: [
                GraphItem(image.astype(np.float32), (GraphTarget(target),)) for image in images
            ]
        )
        answers = await asyncio.gather(
            *(self._backend.compute(key, item, None, Urgency(LOWEST_PRIORITY)) for item in variants)
        )
        return auc([answer.output.probabilities[target] for answer in answers])
