"""The models and their compiled graphs: warm-up, lookup, and compiling at first use."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gradcam_server.config import ServeConfig
from gradcam_server.errors import InvalidRequestError, NotFoundError, StartupError
from gradcam_server.graph import CompilationCounter, ExplanationGraph
from gradcam_server.layers import LayerInfo, default_layer, list_layers
from gradcam_server.models import load
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.requests import Method

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


@dataclass(frozen=True)
class GraphKey:
    """What a graph was compiled for."""

    model: str
    layer: str
    method: Method
    max_targets: int


class Engine:
    """Loads and warms the configured models; finds the graph that a request needs.

    Args:
        config: The settings.

    Raises:
        StartupError: A model or its weights cannot be had, or a layer to warm is in none.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._counter = CompilationCounter()
        self._warm: dict[GraphKey, ExplanationGraph] = {}
        self._extra: OrderedDict[GraphKey, asyncio.Task[ExplanationGraph]] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compiler")
        self.models: dict[str, ServedModel] = {}
        for name in config.model:
            loaded = load(name, config.weights_of(name), config.seed)
            layers = list_layers(loaded.network)
            self.models[name] = ServedModel(loaded, layers, default_layer(layers))
        known = {layer.name for model in self.models.values() for layer in model.layers}
        if unknown := set(config.layer) - known:
            raise StartupError(f"no served model has the layer {', '.join(sorted(unknown))}")

    @property
    def compilation_count(self) -> int:
        """Graphs compiled since the start, warm-up included."""
        return self._counter.count

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The ladder of compiled batch sizes."""
        return self._config.batch_sizes

    def warm_up(self) -> None:
        """Compiles every batch size of the default layers and of those configured."""
        for model in self.models.values():
            for layer in self.compiled_layers(model):
                self._check_explainable(model, layer)
                for max_targets in self._target_counts(model, layer):
                    key = GraphKey(model.name, layer, Method.GRAD_CAM, max_targets)
                    self._warm[key] = self._compile(key)

    def compiled_layers(self, model: ServedModel) -> list[str]:
        """Returns the layers of a model that are compiled before serving."""
        own = {layer.name for layer in model.layers}
        wanted = [model.default_layer, *self._config.layer]
        return [layer for layer in dict.fromkeys(wanted) if layer in own]

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
        self, model: ServedModel, layer: str, method: Method, target_count: int
    ) -> ExplanationGraph:
        """Finds the compiled graph for a request, and compiles it at its first use.

        Compiling takes seconds, on a thread of its own: other requests go on.

        Raises:
            NotFoundError: The model has no such layer.
            InvalidRequestError: The layer cannot be explained, or is not compiled and
                this server compiles none at first use.
        """
        layer = layer or model.default_layer
        self._check_explainable(model, layer)
        max_targets = min(
            count for count in self._target_counts(model, layer) if count >= target_count
        )
        key = GraphKey(model.name, layer, method, max_targets)
        if key in self._warm:
            return self._warm[key]
        if self._config.max_extra_graphs == 0:
            raise InvalidRequestError(
                "layer",
                f"layer {layer!r} is not compiled; this server explains only: "
                f"{', '.join(self.compiled_layers(model))} (start it with --layer {layer})",
            )
        return await self._compiled_at_first_use(key)

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
        model = self.models[key.model].loaded
        graph = ExplanationGraph(model, key.layer, key.method, key.max_targets, self._counter)
        graph.compile(self._config.batch_sizes, self._config.compiler)
        return graph

    def _target_counts(self, model: ServedModel, layer: str) -> Sequence[int]:
        # After the default layer comes only the head, where each further target is
        # nearly free; elsewhere it costs a backward pass, which one target should not pay.
        if layer == model.default_layer:
            return (self._config.max_targets,)
        return tuple(dict.fromkeys((1, self._config.max_targets)))

    def _check_explainable(self, model: ServedModel, layer: str) -> None:
        for known in model.layers:
            if known.name == layer:
                if known.explainable:
                    return
                raise InvalidRequestError(
                    "layer",
                    f"layer {layer!r} of {model.name} cannot be explained: it is the input, or "
                    f"its output {known.output_shape} has no positions; choose one with (batch, "
                    f"height, width, channels), such as {model.default_layer!r}",
                )
        candidates = [known.name for known in model.layers if known.explainable]
        raise NotFoundError(
            "layer",
            f"model {model.name} has no layer {layer!r}; the default is "
            f"{model.default_layer!r}, and candidates are: {', '.join(candidates[-8:])} "
            f"({len(candidates)} in all; see gradcam layers)",
        )
