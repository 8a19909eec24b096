"""The gRPC service ``gradcam.v1.ExplanationService``."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.rpc import status_pb2

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.requests import Progress, watch
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.pipeline.ledger import Claim
from gradcam_server.transport.calls import CallRecord, Calls, Context, call_deadline
from gradcam_server.transport.gradcam_v1.convert import (
    response_fields,
    to_model,
    to_request,
    to_response,
)
from gradcam_server.transport.gradcam_v1.wire import (
    ReceivedItem,
    ReceivedRequest,
    parse_item,
    parse_request,
)
from gradcam_server.transport.many_images import explain_images
from gradcam_server.transport.sending import when_sent
from gradcam_server.transport.streams import StreamItem, StreamLoop

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ExplanationService"].full_name
EXPLAIN_IMAGE = f"{SERVICE_NAME}/ExplainImage"
LIST_MODELS = f"{SERVICE_NAME}/ListModels"
GET_MODEL = f"{SERVICE_NAME}/GetModel"
StreamMessage: TypeAlias = pb.StreamExplainImagesRequest | ReceivedItem
_STREAM = f"{SERVICE_NAME}/StreamExplainImages"


class ExplanationService(pb_grpc.ExplanationServiceServicer):
    """``gradcam.v1.ExplanationService``.

    Args:
        config: The settings.
        calls: Admits and records calls.
    """

    def __init__(self, config: ServeConfig, calls: Calls) -> None:
        self._calls = calls
        self._explainer: Explainer | None = None
        self._stream = StreamLoop(
            calls,
            config.max_stream_in_flight,
            rpc=_STREAM,
            item_rpc=f"{_STREAM}.image",
            message_id=lambda message: message.correlation_id,
            answer=self._answer_item,
            failure=_to_failure,
            in_order=False,
        )

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Adds the methods to a server, with parsers that do not copy images."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ExplainImage": grpc.unary_unary_rpc_method_handler(
                self.ExplainImage, parse_request, pb.ExplainImageResponse.SerializeToString
            ),
            "StreamExplainImages": grpc.stream_stream_rpc_method_handler(
                self.StreamExplainImages,
                parse_item,
                pb.StreamExplainImagesResponse.SerializeToString,
            ),
        }
        # The handler that is added first answers.
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE_NAME, methods),)
        )
        pb_grpc.add_ExplanationServiceServicer_to_server(self, server)

    def publish(self, explainer: Explainer) -> None:
        """Requests are answered by this explainer from now on."""
        self._explainer = explainer

    def models(self) -> list[pb.Model]:
        """Describes the served models, without their classes and layers."""
        return [self._describe(model, full=False) for model in self._current.catalog.models]

    def model(self, name: str, version: str) -> pb.Model:
        """Describes a model, with its classes and layers.

        Raises:
            NotFoundError: No such model.
        """
        return self._describe(self._current.catalog.find_model(name, version), full=True)

    async def ExplainImage(  # noqa: N802
        self, request: pb.ExplainImageRequest | ReceivedRequest, context: Context
    ) -> pb.ExplainImageResponse:
        async with self._calls.answering(context, EXPLAIN_IMAGE) as record:
            claim, deadline = self._calls.claim(context), call_deadline(context)
            when_sent(claim.release)
            return await self.explain(request, record, claim, deadline)

    async def StreamExplainImages(  # noqa: N802
        self, messages: AsyncIterator[StreamMessage], context: Context
    ) -> None:
        await self._stream.run(messages, context)

    async def ListModels(  # noqa: N802
        self, _: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        async with self._calls.answering(context, LIST_MODELS):
            return pb.ListModelsResponse(models=self.models())

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: Context
    ) -> pb.GetModelResponse:
        async with self._calls.answering(context, GET_MODEL):
            return pb.GetModelResponse(model=self.model(request.name, request.version))

    @property
    def _current(self) -> Explainer:
        assert self._explainer is not None  # the lifecycle admits no calls before
        return self._explainer

    def _describe(self, model: ServedModel, *, full: bool) -> pb.Model:
        current = self._current
        return to_model(model, current.catalog, current.compilation_count, full=full)

    async def explain(
        self,
        message: pb.ExplainImageRequest | ReceivedRequest,
        record: CallRecord,
        claim: Claim,
        deadline: float | None,
    ) -> pb.ExplainImageResponse:
        """Explains the image of an admitted call; a full queue refuses it.

        Args:
            message: The request.
            record: Gets the model.
            claim: The memory that the call holds.
            deadline: Time of ``perf_counter`` at which the answer is of no more use.
        """
        fields = await self._explain(message, record, claim, deadline, wait=False)
        return pb.ExplainImageResponse(**fields)

    async def _explain(
        self,
        message: pb.ExplainImageRequest | ReceivedRequest,
        record: CallRecord,
        claim: Claim,
        deadline: float | None,
        *,
        wait: bool,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Explains one image; waits for memory and for a slot in the queue if ``wait``.

        Returns:
            The fields of the response.
        """
        current = self._current
        record.model = current.catalog.find_model(message.model, message.model_version).id
        request = to_request(message, caller=claim.caller, deadline=deadline)
        (reserved,) = await current.reserve([request], claim, wait=wait)
        explained = await current.explain(
            request, wait_for_slot=wait, progress=progress, reserved=reserved
        )
        return response_fields(explained, include_logits=message.include_logits)

    async def explain_images(
        self,
        messages: Sequence[ReceivedRequest],
        record: CallRecord,
        claim: Claim,
        deadline: float | None,
    ) -> list[pb.ExplainImageResponse]:
        """Explains several images of one admitted call at the same time.

        Args:
            messages: The requests, of one model.
            record: Gets the model.
            claim: The memory that the call holds.
            deadline: Time of ``perf_counter`` at which the answer is of no more use.

        Raises:
            ExplanationServerError: An image failed; its text names the image if it is to blame.
        """
        current = self._current
        first = messages[0]
        record.model = current.catalog.find_model(first.model, first.model_version).id
        images = [to_request(one, caller=claim.caller, deadline=deadline) for one in messages]
        explained = await explain_images(self._calls, current, images, claim, wait=False)
        return [to_response(one, include_logits=first.include_logits) for one in explained]

    async def _answer_item(
        self, item: StreamItem[StreamMessage], record: CallRecord
    ) -> pb.StreamExplainImagesResponse:
        message, progress = item.message, Progress()
        # A full queue slows a stream down; only unary calls are refused.
        explaining = self._explain(
            message.request, record, item.claim, item.deadline, wait=True, progress=progress
        )
        if message.report_progress:
            async with _reporting(item, progress):
                response = await explaining
        else:
            response = await explaining
        return pb.StreamExplainImagesResponse(
            correlation_id=message.correlation_id, response=response
        )


def _to_failure(
    message: StreamMessage, status: status_pb2.Status
) -> pb.StreamExplainImagesResponse:
    return pb.StreamExplainImagesResponse(correlation_id=message.correlation_id, error=status)


@asynccontextmanager
async def _reporting(item: StreamItem[StreamMessage], progress: Progress) -> AsyncIterator[None]:
    """Writes the progress into the stream meanwhile."""
    reports = asyncio.ensure_future(_report(item, progress))
    try:
        yield
        # No report follows the answer.
        reports.cancel()
        await asyncio.wait({reports})
    finally:
        reports.cancel()


async def _report(item: StreamItem[StreamMessage], progress: Progress) -> None:
    async for _ in watch(progress):
        message = pb.StreamExplainImagesResponse(correlation_id=item.message.correlation_id)
        message.progress.completed_pass_count = progress.completed
        message.progress.total_pass_count = progress.total
        await item.report(message)
