"""Requests that are in work while their explainer is replaced."""

import asyncio
from typing import Any

import cv2
import numpy as np

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphOutput
from gradcam_server.domain.requests import (
    ExplainedImage,
    ExplainRequest,
    HeatmapForm,
    HeatmapFormat,
)
from gradcam_server.domain.schedule import Answer
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.pipeline.ledger import Ledger
from gradcam_server.telemetry.metrics import Metrics
from support.instant import InstantBackend


class SlowBackend(InstantBackend):
    """Takes a moment to compute, and records whether it is closed."""

    is_closed = False

    async def compute(self, *arguments: Any) -> Answer[GraphOutput]:
        await asyncio.sleep(0.05)
        assert not self.is_closed
        return await super().compute(*arguments)

    async def close(self) -> None:
        self.is_closed = True


async def test_a_retired_explainer_answers_what_it_has_let_in() -> None:
    """It does not close between reserving memory for a request and answering it."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    image = cv2.imencode(".png", noise)[1].tobytes()  # its size is read on a thread
    backend = SlowBackend()
    explainer = Explainer(ServeConfig(), backend, Metrics())
    request = ExplainRequest(image, forms=(HeatmapForm(HeatmapFormat.GRAY_PNG),))

    async def explain() -> ExplainedImage:
        (reserved,) = await explainer.reserve([request], Ledger().claim(""), wait=False)
        return await explainer.explain(request, reserved=reserved)

    answer = asyncio.create_task(explain())
    await asyncio.sleep(0)
    await explainer.retire()
    assert answer.done()
    assert len((await answer).explanations) == 1
    assert backend.is_closed
