"""Requests that are in work while their explainer is replaced."""

import asyncio
from typing import Any

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


async def test_a_retired_explainer_answers_what_it_has_let_in(cat_jpeg: bytes) -> None:
    """It does not close between reserving memory for a request and answering it."""
    computer = SlowComputer()
    explainer = Explainer(ServeConfig(), computer, Metrics())
    request = pb.ExplainImageRequest(encoded_image=cat_jpeg)
    answers = [
        asyncio.create_task(explainer.explain(request, claim=Ledger().claim(""))) for _ in range(2)
    ]
    await asyncio.sleep(0)
    assert explainer.in_work == 2
    await explainer.retire()
    assert all(answer.done() for answer in answers)
    assert [len((await answer).explanations) for answer in answers] == [1, 1]
    assert computer.is_closed
