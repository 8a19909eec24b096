"""The gRPC service: lets requests in, and turns errors into status codes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter

import grpc

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server.config import ServeConfig
from gradcam_server.errors import NotReadyError
from gradcam_server.explainer import Explainer
from gradcam_server.lifecycle import Lifecycle
from gradcam_server.requests import Progress, watch
from gradcam_server.status import status_code, to_status

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ExplanationService"].full_name

_Context = grpc.aio.ServicerContext[object, object]


class ExplanationService(pb_grpc.ExplanationServiceServicer):
    """``gradcam.v1.ExplanationService``.

    Args:
        config: The settings.
        lifecycle: Says whether requests are let in.
    """

    def __init__(self, config: ServeConfig, lifecycle: Lifecycle) -> None:
        self._max_stream_in_flight = config.max_stream_in_flight
        self._lifecycle = lifecycle
        self._explainer: Explainer | None = None

    def publish(self, explainer: Explainer) -> None:
        """Requests are answered by this explainer from now on."""
        self._explainer = explainer

    async def ExplainImage(  # noqa: N802
        self, request: pb.ExplainImageRequest, context: _Context
    ) -> pb.ExplainImageResponse:
        async with self._answering(context):
            return await self._current.explain(request, deadline=_deadline(context))

    async def StreamExplainImages(  # noqa: N802
        self, _: AsyncIterator[pb.StreamExplainImagesRequest], context: _Context
    ) -> None:
        async with self._answering(context):
            await self._answer_stream(context)
            # A client that had more to send learns that it must send it elsewhere.
            self._lifecycle.check()

    async def ListModels(  # noqa: N802
        self, _: pb.ListModelsRequest, context: _Context
    ) -> pb.ListModelsResponse:
        async with self._answering(context):
            return pb.ListModelsResponse(models=self._current.models())

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: _Context
    ) -> pb.GetModelResponse:
        async with self._answering(context):
            model = self._current.model(request.name, request.version)
            return pb.GetModelResponse(model=model)

    @property
    def _current(self) -> Explainer:
        assert self._explainer is not None  # the lifecycle lets nobody in before
        return self._explainer

    @asynccontextmanager
    async def _answering(self, context: _Context) -> AsyncIterator[None]:
        try:
            with self._lifecycle.request():
                yield
        except Exception as error:  # noqa: BLE001 - one table turns all into codes
            if isinstance(error, NotReadyError):
                await self._lifecycle.before_refusal()
            status = to_status(error)
            details = ("grpc-status-details-bin", status.SerializeToString())
            await context.abort(status_code(status), status.message, (details,))

    async def _answer_stream(self, context: _Context) -> None:
        places = asyncio.Semaphore(self._max_stream_in_flight)
        writing = asyncio.Lock()

        async def write(message: pb.StreamExplainImagesResponse) -> None:
            async with writing:
                await context.write(message)

        async def answer(item: pb.StreamExplainImagesRequest) -> None:
            progress = Progress()
            reports = asyncio.ensure_future(_report(item, progress, write))
            try:
                response = await self._answer_item(item, progress, _deadline(context))
                await _cancel(reports)
                await write(response)
            finally:
                reports.cancel()
                places.release()

        async with asyncio.TaskGroup() as answers:
            while True:
                await places.acquire()
                item = await self._read_unless_draining(context)
                if item is None:
                    break
                answers.create_task(answer(item))

    async def _answer_item(
        self,
        item: pb.StreamExplainImagesRequest,
        progress: Progress,
        deadline: float | None,
    ) -> pb.StreamExplainImagesResponse:
        answer = pb.StreamExplainImagesResponse(correlation_id=item.correlation_id)
        try:
            self._lifecycle.check_engine()
            # A full queue slows a stream down; only unary calls are refused.
            response = await self._current.explain(
                item.request, deadline=deadline, wait_for_place=True, progress=progress
            )
            answer.response.CopyFrom(response)
        except Exception as error:  # noqa: BLE001 - one table turns all into codes
            answer.error.CopyFrom(to_status(error))
        return answer

    async def _read_unless_draining(
        self, context: _Context
    ) -> pb.StreamExplainImagesRequest | None:
        read = asyncio.ensure_future(context.read())
        draining = asyncio.ensure_future(self._lifecycle.draining.wait())
        try:
            await asyncio.wait({read, draining}, return_when=asyncio.FIRST_COMPLETED)
            item = read.result() if read.done() else grpc.aio.EOF
        finally:
            read.cancel()
            draining.cancel()
        return item if isinstance(item, pb.StreamExplainImagesRequest) else None


async def _report(
    item: pb.StreamExplainImagesRequest,
    progress: Progress,
    write: Callable[[pb.StreamExplainImagesResponse], Awaitable[None]],
) -> None:
    if not item.report_progress:
        return
    async for _ in watch(progress):
        message = pb.StreamExplainImagesResponse(correlation_id=item.correlation_id)
        message.progress.completed_pass_count = progress.completed
        message.progress.total_pass_count = progress.total
        await write(message)


async def _cancel(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _deadline(context: _Context) -> float | None:
    """Returns the call's deadline as a time of ``perf_counter``."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else perf_counter() + remaining_s
