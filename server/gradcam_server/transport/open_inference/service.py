"""The gRPC service ``inference.GRPCInferenceService``."""

from collections.abc import AsyncIterator

import grpc
from google.protobuf import descriptor_pool
from google.rpc import status_pb2

from gradcam.inference import grpc_service_pb2 as pb
from gradcam.inference import grpc_service_pb2_grpc as pb_grpc
from gradcam_server import __version__
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.errors import InvalidRequestError, NotFoundError
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.pipeline.ledger import Claim
from gradcam_server.transport.calls import CallRecord, Calls, Context, call_deadline
from gradcam_server.transport.lifecycle import Phase
from gradcam_server.transport.many_images import explain_images
from gradcam_server.transport.open_inference.convert import to_request, to_response
from gradcam_server.transport.open_inference.describe import to_config, to_metadata, wire_version
from gradcam_server.transport.open_inference.statistics import ModelRecord
from gradcam_server.transport.sending import when_sent
from gradcam_server.transport.streams import StreamItem, StreamLoop

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
MODEL_INFER = f"{SERVICE_NAME}/ModelInfer"
MODEL_METADATA = f"{SERVICE_NAME}/ModelMetadata"
MODEL_CONFIG = f"{SERVICE_NAME}/ModelConfig"
MODEL_STATISTICS = f"{SERVICE_NAME}/ModelStatistics"
REPOSITORY_INDEX = f"{SERVICE_NAME}/RepositoryIndex"
_STREAM = f"{SERVICE_NAME}/ModelStreamInfer"


def add_to_server(service: "InferenceService", server: grpc.aio.Server) -> None:
    """Adds the service to a server, and to its reflection."""
    # Reflection reads the default pool, to which the stubs do not add themselves.
    descriptor_pool.Default().AddSerializedFile(pb.DESCRIPTOR.serialized_pb)
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)


class InferenceService(pb_grpc.GRPCInferenceServiceServicer):
    """``inference.GRPCInferenceService``.

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
            item_rpc=f"{_STREAM}.request",
            message_id=lambda message: message.id,
            answer=self._answer_item,
            failure=_to_failure,
            in_order=True,
        )
        self._records: dict[tuple[str, str], ModelRecord] = {}

    def publish(self, explainer: Explainer) -> None:
        """Requests are answered by this explainer from now on."""
        self._explainer = explainer

    async def ServerLive(  # noqa: N802
        self, _: pb.ServerLiveRequest, __: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, _: pb.ServerReadyRequest, __: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.is_ready)

    async def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, _: Context
    ) -> pb.ModelReadyResponse:
        try:
            return pb.ModelReadyResponse(
                ready=self.is_ready and bool(self._find(request.name, request.version))
            )
        except NotFoundError:
            return pb.ModelReadyResponse(ready=False)

    async def ServerMetadata(  # noqa: N802
        self, _: pb.ServerMetadataRequest, __: Context
    ) -> pb.ServerMetadataResponse:
        return self.server_metadata()

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        async with self._calls.answering(context, MODEL_METADATA):
            return self.metadata(request.name, request.version)

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        async with self._calls.answering(context, MODEL_CONFIG):
            return pb.ModelConfigResponse(config=self.config(request.name, request.version))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        async with self._calls.answering(context, MODEL_STATISTICS):
            return self.statistics(request.name, request.version)

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        async with self._calls.answering(context, REPOSITORY_INDEX):
            if request.repository_name:
                raise InvalidRequestError(
                    "repository_name", "there is one repository, without a name: leave it empty"
                )
            return self.index()

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        async with self._calls.answering(context, MODEL_INFER) as record:
            claim = self._calls.claim(context, request.id)
            when_sent(claim.release)
            deadline = call_deadline(context)
            return await self.infer(request, record, claim, deadline, wait=False)

    async def ModelStreamInfer(  # noqa: N802
        self, messages: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> None:
        await self._stream.run(messages, context)

    @property
    def is_ready(self) -> bool:
        """Whether the server is warm and not shutting down."""
        return self._calls.lifecycle.phase is Phase.SERVING

    def server_metadata(self) -> pb.ServerMetadataResponse:
        """Describes the server."""
        return pb.ServerMetadataResponse(
            name="gradcam-server",
            version=__version__,
            extensions=["model_configuration", "statistics"],
        )

    def metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        """Describes a model briefly.

        Raises:
            NotFoundError: No such model.
        """
        return to_metadata(self._find(name, version))

    def config(self, name: str, version: str) -> pb.ModelConfig:
        """Describes a model.

        Raises:
            NotFoundError: No such model.
        """
        return to_config(self._find(name, version))

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Returns the statistics of the models of a name and version; an empty text means any.

        Raises:
            NotFoundError: No such model.
        """
        models = self._find_all(name, version)
        return pb.ModelStatisticsResponse(
            model_stats=[self._record(model).to_message() for model in models]
        )

    def index(self) -> pb.RepositoryIndexResponse:
        """Lists the models."""
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=model.name, version=wire_version(model), state="READY"
                )
                for model in self._current.catalog.models
            ]
        )

    @property
    def _current(self) -> Explainer:
        assert self._explainer is not None  # the lifecycle admits no calls before
        return self._explainer

    def _find(self, name: str, version: str) -> ServedModel:
        """Finds a model by its name and the protocol's version; an empty text means the first."""
        return self._find_all(name or self._current.catalog.models[0].name, version)[0]

    def _find_all(self, name: str, version: str) -> list[ServedModel]:
        """Finds the models of a name and version; an empty text means any.

        Raises:
            NotFoundError: No such model.
        """
        models = self._current.catalog.models
        named = [model for model in models if name in ("", model.name)]
        found = [model for model in named if version in ("", wire_version(model))]
        if not named:
            known = ", ".join(dict.fromkeys(model.name for model in models))
            raise NotFoundError("model_name", f"unknown model {name!r}; this server has: {known}")
        if not found:
            versions = ", ".join(wire_version(model) for model in named)
            raise NotFoundError(
                "model_version",
                f"model {name} has no version {version!r}; its versions are: {versions}",
            )
        return found

    def _record(self, model: ServedModel) -> ModelRecord:
        key = model.name, wire_version(model)
        return self._records.setdefault(key, ModelRecord(*key))

    async def infer(
        self,
        message: pb.ModelInferRequest,
        record: CallRecord,
        claim: Claim,
        deadline: float | None,
        *,
        wait: bool,
    ) -> pb.ModelInferResponse:
        """Explains the images of an admitted call, or of a message of a stream.

        Args:
            message: The request.
            record: Gets the model.
            claim: The memory that the call holds.
            deadline: Time of ``perf_counter`` at which the answer is of no more use.
            wait: Wait for memory and for slots in the queue, instead of failing.
        """
        model = self._find(message.model_name, message.model_version)
        record.model = model.id
        with self._record(model).request() as costs:
            request = to_request(
                message, model.name, model.version, caller=claim.caller, deadline=deadline
            )
            explained = await explain_images(
                self._calls, self._current, request.images, claim, wait=wait
            )
            costs.extend(image.stats for image in explained)
            return to_response(message, request.outputs, explained)

    async def _answer_item(
        self, item: StreamItem[pb.ModelInferRequest], record: CallRecord
    ) -> pb.ModelStreamInferResponse:
        answer = pb.ModelStreamInferResponse()
        # A full queue slows a stream down; only unary calls are refused.
        answer.infer_response.CopyFrom(
            await self.infer(item.message, record, item.claim, item.deadline, wait=True)
        )
        answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer


def _to_failure(
    message: pb.ModelInferRequest, status: status_pb2.Status
) -> pb.ModelStreamInferResponse:
    answer = pb.ModelStreamInferResponse(error_message=status.message)
    answer.infer_response.id = message.id
    return answer
