"""Explains images with a warm engine, and reports to the metrics and traces."""

import asyncio
from collections.abc import Sequence

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog
from gradcam_server.domain.requests import ExplainedImage, ExplainRequest, Progress
from gradcam_server.engine.backend import Backend
from gradcam_server.errors import DeadlineError, QueueFullError
from gradcam_server.pipeline.ledger import Claim
from gradcam_server.pipeline.pipeline import Pipeline, Reserved
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.tracing import current_call


class Explainer:
    """A warm engine and its pipeline. To be made, used and closed on one event loop.

    Args:
        config: The settings.
        backend: The warm models; closed with the explainer.
        metrics: Counts stages of answers, refused and dropped requests, and the faithfulness of
            sampled answers.
    """

    def __init__(self, config: ServeConfig, backend: Backend, metrics: Metrics) -> None:
        self._backend, self._metrics = backend, metrics
        self._pipeline = Pipeline(config, backend, metrics.faithfulness)
        self._working = _Working(metrics)

    @property
    def catalog(self) -> Catalog:
        """The served models."""
        return self._backend.catalog

    @property
    def compilation_count(self) -> int:
        """The number of graphs that the engine has compiled."""
        return self._backend.compilation_count

    @property
    def queue_lengths(self) -> dict[str, int]:
        """Admitted requests that are not yet on the device, by queue."""
        return self._pipeline.queue_lengths

    @property
    def thread_counts(self) -> dict[str, int]:
        """Threads that decode or render, by state (``Workers.thread_counts``)."""
        return self._pipeline.thread_counts

    @property
    def in_work(self) -> int:
        """Images of calls and streams that are not yet answered."""
        return self._working.count

    async def close(self) -> None:
        """Stops all threads."""
        await self._pipeline.close()

    async def retire(self) -> None:
        """Closes once no image is in work."""
        while self._working.count:  # new work may have come before this task runs again
            await self._working.idle.wait()
        await self.close()

    async def reserve(
        self, requests: Sequence[ExplainRequest], claim: Claim, *, wait: bool
    ) -> list[Reserved]:
        """Reserves the memory that requests may need, as ``Pipeline.reserve`` does."""
        with self._working:
            return await self._pipeline.reserve(requests, claim, wait=wait)

    async def explain(
        self,
        request: ExplainRequest,
        *,
        wait_for_slot: bool = False,
        progress: Progress | None = None,
        reserved: Reserved | None = None,
    ) -> ExplainedImage:
        """Explains one image, as ``Pipeline.explain`` does."""
        with self._working:
            explained = await self._pipeline.explain(
                request, wait_for_slot=wait_for_slot, progress=progress, reserved=reserved
            )
        stats = explained.stats
        self._metrics.stages(stats)
        current_call.get().stages(stats)
        return explained


class _Working:
    """Counts the images in work, and why they are given up. All images share it.

    Attributes:
        count: Images in work.
        idle: Set while there are none.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.count = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def __enter__(self) -> None:
        self.count += 1
        self.idle.clear()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.count -= 1
        if not self.count:
            self.idle.set()
        match error:
            case QueueFullError():
                self._metrics.rejected("queue_full")
            case DeadlineError():
                self._metrics.dropped("deadline")
            case asyncio.CancelledError():
                self._metrics.dropped("cancelled")
