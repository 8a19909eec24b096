"""Explains in this process, with the requests and answers of the client library."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

import gradcam_client as client
from gradcam_client import Explained, Failed, ImageExplanation, ImageUrl, ModelInfo, Outcome
from gradcam_client.errors import DeadlineExceededError, from_status
from gradcam_client.requests import ImageInput, build_request
from gradcam_client.stream import OnProgress
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.model_spec import DEFAULT_MODEL
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.requests import Progress, ResizeMode, watch
from gradcam_server.engine.backend import LocalBackend
from gradcam_server.engine.engine import Engine, FirstUse
from gradcam_server.errors import InvalidRequestError
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.pipeline.pipeline import load
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.transport.gradcam_v1.convert import to_model, to_request, to_response
from gradcam_server.transport.status import to_status

_MAX_IN_FLIGHT = 16

_T = TypeVar("_T")


@dataclass(frozen=True)
class LikelyAnswer:
    """A model's answer by one preprocessing.

    Attributes:
        preprocessing: A value of ``--preprocessing``.
        index: The best class.
        name: Its name; empty if the model has no labels.
        probability: Its probability, 0 to 1.
    """

    preprocessing: str
    index: int
    name: str
    probability: float


class LocalClient:
    """Has the ``explain_stream`` of ``gradcam_client.Client``; compiles graphs at first use.

    Args:
        config: The settings; those of the network are ignored.
        first_use: How graphs are compiled, if the settings name no compiler.
        on_slow_compile: As for ``Engine``.

    Raises:
        StartupError: The model or its weights cannot be had.
    """

    def __init__(
        self,
        config: ServeConfig,
        first_use: FirstUse = FirstUse.FASTEST,
        on_slow_compile: Callable[[GraphKey], None] | None = None,
    ) -> None:
        if config.compiler is not Compiler.AUTO:
            first_use = FirstUse.FASTEST
        # Commands end soon: choosing streams would take longer than they save.
        config = replace(config, compute_streams=1)
        engine = Engine(config, first_use, on_slow_compile)
        self._config, self._source = config, next(iter(engine.sources.values()))
        self._runner = asyncio.Runner()
        self._explainer = self._runner.run(_on_loop(config, engine))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._explainer.close())
        self._runner.close()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine, which may await ``explain``, in the event loop of the model."""
        return self._runner.run(coroutine)

    async def explain(
        self, image: ImageInput, *, timeout_s: float | None = None, **options: Any
    ) -> ImageExplanation:
        """Explains one image, as ``AsyncClient.explain`` does; only within ``run``.

        Args:
            image: A path, bytes or a uint8 RGB array (H, W, 3).
            timeout_s: The deadline in seconds, or None.
            **options: As for ``gradcam_client.build_request``.

        Raises:
            GradCamError: The error of the explanation; ``DeadlineExceededError`` if it is late.
            OSError, ValueError, TypeError: As of ``gradcam_client.build_request``.
        """
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await self._explain(image, options, None)
        except TimeoutError:
            late = f"there was no answer within {timeout_s:g} s"
            raise DeadlineExceededError(grpc.StatusCode.DEADLINE_EXCEEDED, late) from None
        return outcome.unwrap()

    def explain_stream(
        self,
        images: Iterable[ImageInput],
        *,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Iterator[Outcome]:
        """Explains images in batches; answers come in the order of the images.

        Args:
            images: Paths, bytes or uint8 RGB arrays (H, W, 3).
            on_progress: Receives the progress of each image, a few times a second.
            **options: As for ``gradcam_client.build_request``.

        Yields:
            An outcome or an error for each image.
        """
        loop = self._runner.get_loop()
        pending: deque[asyncio.Task[Outcome]] = deque()
        for image in images:
            pending.append(loop.create_task(self._explain(image, options, on_progress)))
            if len(pending) >= _MAX_IN_FLIGHT:
                yield self._runner.run(_result(pending.popleft()))
        while pending:
            yield self._runner.run(_result(pending.popleft()))

    def predict_by_likely_preprocessing(
        self, image: Path | ImageUrl, resize: str
    ) -> list[LikelyAnswer]:
        """Predicts an image with each likely preprocessing, if none is declared or found.

        Args:
            image: The file, or its link.
            resize: How it is resized to the model's input size: a key of ``RESIZE_MODES``.

        Returns:
            An answer for each preprocessing; none if the model's preprocessing is declared or
            found, or if the image cannot be read, which ``explain_stream`` reports.
        """
        served = self._source.served
        if served.preprocessing_declared:
            return []
        try:
            fitted = load(
                image.read_bytes(),
                self._config,
                served.input_size,
                ResizeMode(resize),
                is_whole_needed=False,
            ).fitted
        except (OSError, ValueError, InvalidRequestError):
            return []
        answers = self._source.answer_by_likely_preprocessing(fitted)
        return [
            LikelyAnswer(
                how.value,
                index := int(probabilities.argmax()),
                served.labels.name(index),
                float(probabilities[index]),
            )
            for how, probabilities in answers.items()
        ]

    async def _explain(
        self, image: ImageInput, options: dict[str, Any], on_progress: OnProgress | None
    ) -> Outcome:
        try:
            request = await asyncio.to_thread(build_request, image, **options)
        except (OSError, ValueError, TypeError) as error:
            return Failed(image, error)
        progress = Progress()
        reports = asyncio.ensure_future(_report(image, progress, on_progress))
        try:
            explained = await self._explainer.explain(
                to_request(request), wait_for_slot=True, progress=progress
            )
        except Exception as error:  # noqa: BLE001 - as the service does
            return Failed(image, from_status(to_status(error)))
        finally:
            reports.cancel()
        response = to_response(explained, include_logits=request.include_logits)
        return Explained(image, ImageExplanation.from_response(response, image))


def describe_model(name: str, custom_objects: tuple[str, ...] = ()) -> ModelInfo:
    """Describes a model; a built-in one without its weights.

    Raises:
        StartupError: No such model.
    """
    config = ServeConfig(
        model=(name or DEFAULT_MODEL,),
        weights=("none",),
        custom_objects=custom_objects,
        max_targets=1,  # as every export has
    )
    engine = Engine(config)

    async def describe() -> ModelInfo:
        explainer = await _on_loop(config, engine)
        try:
            catalog = explainer.catalog
            model = to_model(catalog.models[0], catalog, explainer.compilation_count, full=True)
            return ModelInfo.from_proto(model)
        finally:
            await explainer.close()

    return asyncio.run(describe())


async def _report(image: ImageInput, progress: Progress, tell: OnProgress | None) -> None:
    if tell is None:
        return
    async for _ in watch(progress):
        tell(client.Progress(image, progress.completed, progress.total))


async def _on_loop(config: ServeConfig, engine: Engine) -> Explainer:
    return Explainer(config, LocalBackend(config, engine), Metrics())


async def _result(task: "asyncio.Task[Outcome]") -> Outcome:
    return await task
