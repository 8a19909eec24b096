"""The models and their compiled graphs: warm-up, and compiling at first use."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from gradcam_server.catalog import Catalog, ServedModel, graph_keys
from gradcam_server.compiled import CompilationCounter, CompiledGraph
from gradcam_server.config import ServeConfig
from gradcam_server.errors import ExplanationServerError, InvalidRequestError, StartupError
from gradcam_server.graph_io import GraphKey
from gradcam_server.requests import Method, ScoreType
from gradcam_server.sources import GraphSource, open_source
from gradcam_server.threads import set_compute_threads
from gradcam_server.warm import parse_warm, warm_option

logger = logging.getLogger(__name__)


class Engine:
    """Loads and warms the configured models; has or makes the graph that a request needs.

    Args:
        config: The settings.

    Raises:
        StartupError: A model or its weights cannot be had.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._counter = CompilationCounter()
        self._warm: dict[GraphKey, CompiledGraph] = {}
        self._extra: OrderedDict[GraphKey, asyncio.Task[CompiledGraph]] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compiler")
        set_compute_threads(config.compute_threads, config.compute_streams)
        self._sources: dict[str, GraphSource] = {}
        for spec in config.model_specs():
            self._sources[spec.id] = open_source(spec, config, self._counter)
        self._served = [source.served for source in self._sources.values()]

    @property
    def sources(self) -> Mapping[str, GraphSource]:
        """The models by their ids, in the order of the settings."""
        return self._sources

    @property
    def device_count(self) -> int:
        """On how many devices the graphs run, as far as they are compiled."""
        of_sources = [source.device_count for source in self._sources.values()]
        return max([*of_sources, *(graph.device_count for graph in self._warm.values())])

    @property
    def compilation_count(self) -> int:
        """Graphs compiled since the start, warm-up included."""
        return self._counter.count

    @property
    def catalog(self) -> Catalog:
        """The models, and the graphs that are warm."""
        config = self._config
        return Catalog(
            tuple(self._served), tuple(self._warm), config.batch_sizes, config.max_targets
        )

    @property
    def warm(self) -> Mapping[GraphKey, CompiledGraph]:
        """The graphs that were compiled while warming up."""
        return self._warm

    def warm_up(self) -> None:
        """Compiles every batch size of Grad-CAM at the default layers, and of what was named.

        Raises:
            StartupError: What was named to be warm cannot be, or a model cannot be compiled or
                runs in training mode.
        """
        for key in self.warm_keys():
            try:
                self._warm[key] = self._compile(key)
            except InvalidRequestError as error:
                raise StartupError(str(error)) from error
        compilers: dict[str, str] = {}
        for key, graph in self._warm.items():  # the default layer's come first
            compilers.setdefault(key.model, graph.compiler)
        self._served = [replace(model, compiler=compilers[model.id]) for model in self._served]

    def warm_keys(self) -> list[GraphKey]:
        """Returns what is compiled before serving; the default model's default graph first.

        Raises:
            StartupError: What was named to be warm cannot be.
        """
        return list(dict.fromkeys(self._warm_keys()))

    async def graph(self, key: GraphKey) -> CompiledGraph:
        """Finds a compiled graph, and compiles it at its first use.

        Compiling takes seconds, on a thread of its own: other requests go on.

        Raises:
            InvalidRequestError: The classes do not depend on a layer, or the graph is not
                compiled and this server compiles none at first use.
        """
        if key in self._warm:
            return self._warm[key]
        if self._config.max_extra_graphs == 0 and not key.perturbed:
            raise InvalidRequestError(
                "layers",
                f"{key} is not compiled, and this server compiles nothing at first use; it has: "
                f"{'; '.join(dict.fromkeys(str(warm) for warm in self._warm))}. "
                f"Start it with --warm {warm_option(key)}",
            )
        if key not in self._extra:
            while len(self._extra) >= max(self._config.max_extra_graphs, 1):
                self._extra.popitem(last=False)
            self._extra[key] = asyncio.create_task(self._compile_off_loop(key))
        self._extra.move_to_end(key)
        # One caller's cancellation must not stop what others wait for.
        return await asyncio.shield(self._extra[key])

    def close(self) -> None:
        """Stops compiling."""
        self._compiler.shutdown(cancel_futures=True)

    async def _compile_off_loop(self, key: GraphKey) -> CompiledGraph:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._compiler, self._compile, key)
        except BaseException:
            self._extra.pop(key, None)
            raise

    def _compile(self, key: GraphKey) -> CompiledGraph:
        # Perturbed images come in numbers: one size is enough, and sooner ready.
        sizes = self._config.batch_sizes[-1:] if key.perturbed else self._config.batch_sizes
        return self._sources[key.model].compile(key, sizes)

    def _warm_keys(self) -> Iterator[GraphKey]:
        most = self._config.max_targets
        for model in self._served:
            default = (model.default_layer,)
            yield from graph_keys(model, default, Method.GRAD_CAM, ScoreType.LOGIT, most)
        for option in self._config.warm:
            wanted = parse_warm(option)
            found: list[tuple[ServedModel, tuple[str, ...]]] = []
            failures = []
            for model in self._served:
                try:
                    found.append((model, model.resolve_layers(wanted.layers)))
                except ExplanationServerError as error:
                    failures.append(str(error))
            if not found:
                raise StartupError(f"--warm {option}: {'; '.join(failures)}")
            for model, paths in found:
                yield from graph_keys(model, paths, wanted.method, wanted.score_type, most)
