"""Answers protobuf requests, over gRPC or in-process: convert, ask the pipeline, convert back."""

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.config import ServeConfig
from gradcam_server.convert import to_model, to_request, to_response
from gradcam_server.engine import Engine
from gradcam_server.pipeline import Pipeline
from gradcam_server.requests import Progress


class Explainer:
    """A warm engine and its pipeline. Made, used and closed on one event loop.

    Args:
        config: The settings.
        engine: The warm models; closed with the explainer.
    """

    def __init__(self, config: ServeConfig, engine: Engine) -> None:
        self._config, self._engine = config, engine
        self._pipeline = Pipeline(config, engine)

    async def close(self) -> None:
        """Stops all threads."""
        await self._pipeline.close()
        self._engine.close()

    async def explain(
        self,
        message: pb.ExplainImageRequest,
        *,
        wait_for_place: bool = False,
        progress: Progress | None = None,
    ) -> pb.ExplainImageResponse:
        """Explains one image.

        Args:
            message: The request.
            wait_for_place: Wait while the queue is full, instead of failing.
            progress: Kept up to date, for methods of many passes.

        Raises:
            ExplanationServerError: See ``Pipeline.explain`` and ``to_request``.
        """
        explained = await self._pipeline.explain(
            to_request(message), wait_for_place=wait_for_place, progress=progress
        )
        return to_response(explained, include_logits=message.include_logits)

    def models(self) -> list[pb.Model]:
        """Describes all models in short."""
        return [
            to_model(model, self._engine, self._config.max_targets, full=False)
            for model in self._engine.models.values()
        ]

    def model(self, name: str) -> pb.Model:
        """Describes one model in full.

        Raises:
            NotFoundError: No such model.
        """
        model = self._engine.find_model(name)
        return to_model(model, self._engine, self._config.max_targets, full=True)
