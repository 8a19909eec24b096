"""Answers protobuf requests, over gRPC or in-process: convert, ask the pipeline, convert back."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.computer import Computer
from gradcam_server.config import ServeConfig
from gradcam_server.convert import to_model, to_request, to_response
from gradcam_server.errors import DeadlineError, QueueFullError
from gradcam_server.ledger import Claim
from gradcam_server.metrics import Metrics
from gradcam_server.pipeline import Pipeline, Reserved
from gradcam_server.requests import ExplainedImage, ExplainRequest, Progress
from gradcam_server.tracing import current_call


class Explainer:
    """A warm engine and its pipeline. Made, used and closed on one event loop.

    Args:
        config: The settings.
        computer: The warm models; closed with the explainer.
        metrics: Told where the time of answers went, what was refused and dropped, and how
            faithful sampled answers are.
    """

    def __init__(self, config: ServeConfig, computer: Computer, metrics: Metrics) -> None:
        self._computer, self._metrics = computer, metrics
        self._pipeline = Pipeline(config, computer, metrics.faithfulness)
        self._in_work = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def queue_lengths(self) -> dict[str, int]:
        """Requests admitted and not yet on the device, by queue (``Pipeline.queue_lengths``)."""
        return self._pipeline.queue_lengths

    @property
    def thread_counts(self) -> dict[str, int]:
        """Threads that decode or render now, by state (``Workers.thread_counts``)."""
        return self._pipeline.thread_counts

    @property
    def in_work(self) -> int:
        """Images that are not answered yet, of calls and of streams."""
        return self._in_work

    async def close(self) -> None:
        """Stops all threads."""
        await self._pipeline.close()

    async def retire(self) -> None:
        """Closes once nothing is in work any more."""
        while self._in_work:  # work may have come in the moment in which there was none
            await self._idle.wait()
        await self.close()

    async def explain(
        self,
        message: pb.ExplainImageRequest,
        *,
        deadline: float | None = None,
        wait_for_place: bool = False,
        progress: Progress | None = None,
        claim: Claim | None = None,
    ) -> pb.ExplainImageResponse:
        """Explains one image.

        Args:
            message: The request.
            deadline: Time of ``perf_counter`` at which the answer is of no more use.
            wait_for_place: Wait while the queue is full, instead of failing.
            progress: Kept up to date, for methods of many passes.
            claim: Counts the memory that the message holds; None if nobody does.

        Raises:
            ExplanationServerError: See ``Pipeline.explain`` and ``to_request``.
        """
        request, reserved = to_request(message, deadline), None
        if claim is not None:
            (reserved,) = await self.reserve([request], claim, wait=wait_for_place)
        explained = await self.explain_image(
            request, wait_for_place=wait_for_place, progress=progress, reserved=reserved
        )
        return to_response(explained, include_logits=message.include_logits)

    async def reserve(
        self, requests: Sequence[ExplainRequest], claim: Claim, *, wait: bool
    ) -> list[Reserved]:
        """Takes the memory that requests may need, as ``Pipeline.reserve`` does."""
        with self._working():
            return await self._pipeline.reserve(requests, claim, wait=wait)

    async def explain_image(
        self,
        request: ExplainRequest,
        *,
        wait_for_place: bool = False,
        progress: Progress | None = None,
        reserved: Reserved | None = None,
    ) -> ExplainedImage:
        """Explains one image, as ``Pipeline.explain`` does."""
        with self._working():
            explained = await self._pipeline.explain(
                request, wait_for_place=wait_for_place, progress=progress, reserved=reserved
            )
        stats = explained.stats
        self._metrics.stages(stats)
        current_call.get().stages(stats)
        return explained

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Counts an image in work, and why it was given up."""
        self._in_work += 1
        self._idle.clear()
        try:
            yield
        except QueueFullError:
            self._metrics.rejected("queue_full")
            raise
        except DeadlineError:
            self._metrics.dropped("deadline")
            raise
        except asyncio.CancelledError:
            self._metrics.dropped("cancelled")
            raise
        finally:
            self._in_work -= 1
            if not self._in_work:
                self._idle.set()

    def model_id(self, name: str, version: str = "") -> str:
        """Returns the name and version, in one, of the model that answers for these.

        Raises:
            NotFoundError: No such model.
        """
        return self._computer.catalog.find_model(name, version).id

    def models(self) -> list[pb.Model]:
        """Describes all models in short."""
        catalog, count = self._computer.catalog, self._computer.compilation_count
        return [to_model(model, catalog, count, full=False) for model in catalog.models]

    def model(self, name: str, version: str = "") -> pb.Model:
        """Describes one model in full.

        Raises:
            NotFoundError: No such model.
        """
        catalog = self._computer.catalog
        model = catalog.find_model(name, version)
        return to_model(model, catalog, self._computer.compilation_count, full=True)
