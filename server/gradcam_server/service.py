"""The gRPC service ``gradcam.v1.ExplanationService``."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server.calls import Calls, Context, Counted, call_deadline
from gradcam_server.config import ServeConfig
from gradcam_server.explainer import Explainer
from gradcam_server.ledger import Claim
from gradcam_server.requests import Progress, watch
from gradcam_server.sending import when_sent

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ExplanationService"].full_name
_UNARY = f"{SERVICE_NAME}/ExplainImage"
_STREAM = f"{SERVICE_NAME}/StreamExplainImages"
_IMAGE = f"{_STREAM}.image"

_Write: TypeAlias = Callable[[pb.StreamExplainImagesResponse], Awaitable[None]]


class ExplanationService(pb_grpc.ExplanationServiceServicer):
    """``gradcam.v1.ExplanationService``.

    Args:
        config: The settings.
        calls: Lets them in.
    """

    def __init__(self, config: ServeConfig, calls: Calls) -> None:
        self._max_stream_in_flight = config.max_stream_in_flight
        self._calls = calls
        self._explainer: Explainer | None = None

    def publish(self, explainer: Explainer) -> None:
        """Requests are answered by this explainer from now on."""
        self._explainer = explainer

    def models(self) -> list[pb.Model]:
        """Describes in short what is served."""
        return self._current.models()

    async def ExplainImage(  # noqa: N802
        self, request: pb.ExplainImageRequest, context: Context
    ) -> pb.ExplainImageResponse:
        async with self._calls.answering(context, _UNARY) as counted:
            claim = self._calls.claim(context)
            when_sent(claim.release)
            counted.model = self._current.model_id(request.model, request.model_version)
            return await self._current.explain(
                request, deadline=call_deadline(context), claim=claim
            )

    async def StreamExplainImages(  # noqa: N802
        self, messages: AsyncIterator[pb.StreamExplainImagesRequest], context: Context
    ) -> None:
        async with self._calls.answering(context, _STREAM):
            await self._answer_stream(messages, context)
            # A client that had more to send learns that it must send it elsewhere.
            self._calls.lifecycle.check()

    async def ListModels(  # noqa: N802
        self, _: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        async with self._calls.answering(context, f"{SERVICE_NAME}/ListModels"):
            return pb.ListModelsResponse(models=self._current.models())

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: Context
    ) -> pb.GetModelResponse:
        async with self._calls.answering(context, f"{SERVICE_NAME}/GetModel"):
            model = self._current.model(request.name, request.version)
            return pb.GetModelResponse(model=model)

    @property
    def _current(self) -> Explainer:
        assert self._explainer is not None  # the lifecycle lets nobody in before
        return self._explainer

    async def _answer_stream(
        self, messages: AsyncIterator[pb.StreamExplainImagesRequest], context: Context
    ) -> None:
        places = asyncio.Semaphore(self._max_stream_in_flight)
        write = self._calls.writer(context)

        async def answer(item: pb.StreamExplainImagesRequest, claim: Claim) -> None:
            progress = Progress()
            try:
                async with _reporting(item, progress, write):
                    deadline = call_deadline(context)
                    response = await self._answer_item(item, progress, deadline, claim)
                await write(response)
            finally:
                claim.release()
                places.release()

        async with asyncio.TaskGroup() as answers:
            while True:
                await places.acquire()
                item = await self._calls.read_unless_draining(messages)
                if item is None:
                    break
                claim = self._calls.claim(context, item.correlation_id)
                answers.create_task(answer(item, claim))
                # Of what waits for memory, a stream holds one message.
                await claim.settled.wait()

    async def _answer_item(
        self,
        item: pb.StreamExplainImagesRequest,
        progress: Progress,
        deadline: float | None,
        claim: Claim,
    ) -> pb.StreamExplainImagesResponse:
        async def work(counted: Counted) -> pb.ExplainImageResponse:
            request, current = item.request, self._current
            counted.model = current.model_id(request.model, request.model_version)
            # A full queue slows a stream down; only unary calls are refused.
            return await current.explain(
                request, deadline=deadline, wait_for_place=True, progress=progress, claim=claim
            )

        outcome = await self._calls.item(_IMAGE, work)
        claim.settled.set()
        if isinstance(outcome, pb.ExplainImageResponse):
            return pb.StreamExplainImagesResponse(
                correlation_id=item.correlation_id, response=outcome
            )
        return pb.StreamExplainImagesResponse(correlation_id=item.correlation_id, error=outcome)


@asynccontextmanager
async def _reporting(
    item: pb.StreamExplainImagesRequest, progress: Progress, write: _Write
) -> AsyncIterator[None]:
    """Reports progress meanwhile, if that is asked for."""
    if not item.report_progress:
        yield
        return
    reports = asyncio.ensure_future(_report(item, progress, write))
    try:
        yield
        await _cancel(reports)
    finally:
        reports.cancel()


async def _report(item: pb.StreamExplainImagesRequest, progress: Progress, write: _Write) -> None:
    async for _ in watch(progress):
        message = pb.StreamExplainImagesResponse(correlation_id=item.correlation_id)
        message.progress.completed_pass_count = progress.completed
        message.progress.total_pass_count = progress.total
        await write(message)


async def _cancel(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
