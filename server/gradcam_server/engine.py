"""The models and their compiled graphs: warm-up, lookup, and compiling at first use."""

import asyncio
import difflib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gradcam_server.config import ServeConfig
from gradcam_server.errors import (
    ExplanationServerError,
    InvalidRequestError,
    NotFoundError,
    StartupError,
)
from gradcam_server.graph import (
    CompilationCounter,
    DisconnectedLayerError,
    ExplanationGraph,
    GraphKey,
)
from gradcam_server.layers import LayerInfo, default_layer
from gradcam_server.models import load
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.requests import Method, ScoreType

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """A loaded model and its layers."""

    loaded: LoadedModel
    layers: tuple[LayerInfo, ...]
    default_layer: str

    @property
    def name(self) -> str:
        """The name by which requests choose it."""
        return self.loaded.name


class Engine:
    """Loads and warms the configured models; finds the graph that a request needs.

    Args:
        config: The settings.

    Raises:
        StartupError: A model or its weights cannot be had.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._counter = CompilationCounter()
        self._warm: dict[GraphKey, ExplanationGraph] = {}
        self._extra: OrderedDict[GraphKey, asyncio.Task[ExplanationGraph]] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compiler")
        self.models: dict[str, ServedModel] = {}
        for spec in config.model_specs():
            loaded = load(spec)
            layers = loaded.network.layers
            try:
                default = default_layer(layers)
            except ValueError as error:
                raise StartupError(f"{spec.name} cannot be explained: {error}") from error
            self.models[spec.name] = ServedModel(loaded, layers, default)

    @property
    def compilation_count(self) -> int:
        """Graphs compiled since the start, warm-up included."""
        return self._counter.count

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The ladder of compiled batch sizes."""
        return self._config.batch_sizes

    def warm_up(self) -> None:
        """Compiles every batch size of Grad-CAM at the default layers, and of what was named.

        Raises:
            StartupError: What was named to be warm cannot be.
        """
        for key in self._warm_keys():
            self._warm[key] = self._compile(key)

    def compiled_layers(self, model: ServedModel) -> list[str]:
        """Returns the layers of a model for which a graph is warm."""
        layers = (key.layers for key in self._warm if key.model == model.name)
        return list(dict.fromkeys(name for names in layers for name in names))

    def find_model(self, name: str) -> ServedModel:
        """Finds a model; the empty name is the first.

        Raises:
            NotFoundError: No such model.
        """
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise NotFoundError(
                "model", f"unknown model {name!r}; this server has: {', '.join(self.models)}"
            )
        return self.models[name]

    async def find_graph(
        self,
        model: ServedModel,
        layers: Sequence[str],
        method: Method,
        score_type: ScoreType,
        target_count: int,
    ) -> ExplanationGraph:
        """Finds the compiled graph for a request, and compiles it at its first use.

        Compiling takes seconds, on a thread of its own: other requests go on.

        Raises:
            NotFoundError: The model has no such layer.
            InvalidRequestError: A layer is ambiguous or cannot be explained, or the graph
                is not compiled and this server compiles none at first use.
        """
        names = self.resolve_layers(model, layers)
        key = next(
            key
            for key in self._keys(model, names, method, score_type)
            if key.max_targets >= target_count
        )
        if key in self._warm:
            return self._warm[key]
        if self._config.max_extra_graphs == 0:
            raise InvalidRequestError(
                "layers",
                f"{key} is not compiled, and this server compiles nothing at first use; it has: "
                f"{'; '.join(dict.fromkeys(str(warm) for warm in self._warm))}. "
                f"Start it with --warm {method}@{'+'.join(names)}",
            )
        return await self._compiled_at_first_use(key)

    async def find_perturbed_graph(
        self,
        model: ServedModel,
        layers: tuple[str, ...],
        method: Method,
        score_type: ScoreType,
        target_count: int,
        channel_count: int = 0,
    ) -> ExplanationGraph:
        """Finds the graph that a method of many passes needs, as ``find_graph`` does.

        Args:
            model: The model.
            layers: Paths of layers, or ``PIXELS``.
            method: A one-pass method.
            score_type: What is explained of a class.
            target_count: Targets of the request.
            channel_count: As of ``GraphKey``.
        """
        # Just as many as are asked for: over many passes an idle target would cost much.
        return await self._compiled_at_first_use(
            GraphKey(
                model.name,
                layers,
                method,
                score_type,
                target_count,
                perturbed=True,
                channel_count=channel_count,
            )
        )

    def resolve_layers(self, model: ServedModel, names: Sequence[str]) -> tuple[str, ...]:
        """Finds layers by path, or by their name alone where only one has it.

        Raises:
            NotFoundError: The model has no such layer.
            InvalidRequestError: A layer is ambiguous or cannot be explained.
        """
        return tuple(_resolve_layer(model, name) for name in names) or (model.default_layer,)

    def close(self) -> None:
        """Stops compiling."""
        self._compiler.shutdown(cancel_futures=True)

    async def _compiled_at_first_use(self, key: GraphKey) -> ExplanationGraph:
        if key not in self._extra:
            while len(self._extra) >= self._config.max_extra_graphs:
                self._extra.popitem(last=False)
            self._extra[key] = asyncio.create_task(self._compile_off_loop(key))
        self._extra.move_to_end(key)
        # One caller's cancellation must not stop what others wait for.
        return await asyncio.shield(self._extra[key])

    async def _compile_off_loop(self, key: GraphKey) -> ExplanationGraph:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._compiler, self._compile, key)
        except BaseException:
            self._extra.pop(key, None)
            raise

    def _compile(self, key: GraphKey) -> ExplanationGraph:
        graph = ExplanationGraph(self.models[key.model].loaded, key, self._counter)
        try:
            # Perturbed images come in numbers: one size is enough, and sooner ready.
            sizes = self._config.batch_sizes[-1:] if key.perturbed else self._config.batch_sizes
            graph.compile(sizes, self._config.compiler)
        except DisconnectedLayerError as error:
            raise InvalidRequestError(
                "layers",
                f"layer {error.layer!r} of {key.model} cannot be explained: the classes do not "
                "depend on it",
            ) from error
        return graph

    def _warm_keys(self) -> Iterator[GraphKey]:
        for model in self.models.values():
            default = (model.default_layer,)
            yield from self._keys(model, default, Method.GRAD_CAM, ScoreType.LOGIT)
        for option in self._config.warm:
            method, layers = _parse_warm(option)
            found: dict[str, tuple[str, ...]] = {}
            failures = []
            for model in self.models.values():
                try:
                    found[model.name] = self.resolve_layers(model, layers)
                except ExplanationServerError as error:
                    failures.append(str(error))
            if not found:
                raise StartupError(f"--warm {option}: {'; '.join(failures)}")
            for name, names in found.items():
                yield from self._keys(self.models[name], names, method, ScoreType.LOGIT)

    def _keys(
        self, model: ServedModel, layers: tuple[str, ...], method: Method, score_type: ScoreType
    ) -> list[GraphKey]:
        """Returns the keys for few and for many targets, ascending."""
        # After the default layer comes only the head, where each further target is
        # nearly free; elsewhere it costs a backward pass, which one target should not pay.
        cheap = layers == (model.default_layer,) and method is not Method.EIGEN_GRAD_CAM
        most = self._config.max_targets
        return [
            GraphKey(model.name, layers, method, score_type, max_targets)
            for max_targets in ((most,) if cheap else sorted({1, most}))
        ]


def _parse_warm(option: str) -> tuple[Method, tuple[str, ...]]:
    method, _, layers = option.partition("@")
    if method not in set(Method):
        raise StartupError(
            f"--warm {option}: the method must be one of {', '.join(Method)}, as in gradcam@LAYER"
        )
    return Method(method), tuple(layers.split("+")) if layers else ()


def _resolve_layer(model: ServedModel, name: str) -> str:
    by_name = {layer.name: layer for layer in model.layers}
    found = [path for path in by_name if path == name] or [
        path for path in by_name if path.rpartition("/")[2] == name
    ]
    if len(found) > 1:
        raise InvalidRequestError(
            "layers",
            f"layer {name!r} of {model.name} is ambiguous; choose one of: {', '.join(found)}",
        )
    if not found:
        candidates = [path for path, layer in by_name.items() if layer.explainable]
        close = difflib.get_close_matches(name, candidates, n=3)
        raise NotFoundError(
            "layers",
            f"model {model.name} has no layer {name!r}; the default is "
            f"{model.default_layer!r}, and candidates are: "
            f"{', '.join(dict.fromkeys([*close, *candidates[-8:]]))} "
            f"({len(candidates)} in all; see gradcam layers)",
        )
    layer = by_name[found[0]]
    if not layer.explainable:
        raise InvalidRequestError(
            "layers",
            f"layer {name!r} of {model.name} cannot be explained: it is the input, or its output "
            f"{layer.output_shape} has no positions; choose one with (batch, height, width, "
            f"channels), such as {model.default_layer!r}",
        )
    return layer.name
