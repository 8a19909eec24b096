"""Requests that are in work while their explainer is replaced."""

import asyncio
from typing import Any

import cv2
import numpy as np

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.batching import Answer
from gradcam_server.config import ServeConfig
from gradcam_server.explainer import Explainer
from gradcam_server.graph_io import GraphOutput
from gradcam_server.ledger import Ledger
from gradcam_server.metrics import Metrics
from support.instant import InstantComputer


class SlowComputer(InstantComputer):
    """Computes for a moment, and knows whether it is closed."""

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
    computer = SlowComputer()
    explainer = Explainer(ServeConfig(), computer, Metrics())
    form = pb.HeatmapRequest(format=pb.HEATMAP_FORMAT_GRAY_PNG)
    request = pb.ExplainImageRequest(encoded_image=image, heatmaps=[form])
    answer = asyncio.create_task(explainer.explain(request, claim=Ledger().claim("")))
    await asyncio.sleep(0)
    await explainer.retire()
    assert answer.done()
    assert len((await answer).explanations) == 1
    assert computer.is_closed
