"""The models and their compiled graphs: warm-up, and compiling at first use."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto

from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog, ServedModel, graph_keys
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.domain.warm import parse_warm, warm_option
from gradcam_server.engine.sources.base import GraphSource, open_source
from gradcam_server.errors import ExplanationServerError, InvalidRequestError, StartupError
from gradcam_server.graphs.executable import (
    CompilationCounter,
    CompiledGraph,
    RunAlone,
    at_once,
)
from gradcam_server.graphs.threads import max_streams, set_compute_threads

logger = logging.getLogger(__name__)

SLOW_S = 2.0
"""A first compilation that takes longer is reported while it goes on, in seconds."""


class FirstUse(Enum):
    """How a graph is compiled at its first use."""

    SOONEST = auto()
    """By the compiler that is ready soonest, and no other: for few images."""
    SOONEST_THEN_FASTEST = auto()
    """The same, and the compiler of the settings then replaces the graph."""
    FASTEST = auto()
    """By the compiler of the settings, for which the first request waits: for many images."""


@dataclass
class _Extra:
    """A graph that is compiled at first use.

    Attributes:
        first: Makes the first graph.
        graph: The best graph so far.
        better: Makes the graph that replaces the first.
    """

    first: asyncio.Task[CompiledGraph] | None = None
    graph: CompiledGraph | None = None
    better: asyncio.Task[None] | None = None

    def stop_improving(self) -> None:
        if self.better is not None:
            self.better.cancel()


class Engine:
    """Loads and warms the configured models; finds or compiles the graph that a request needs.

    Args:
        config: The settings.
        first_use: How graphs are compiled that are not warm.
        on_slow_compile: Called once, on the event loop, while a first compilation goes on that
            takes longer than ``SLOW_S``.

    Raises:
        StartupError: A model or its weights cannot be loaded.
    """

    def __init__(
        self,
        config: ServeConfig,
        first_use: FirstUse = FirstUse.SOONEST_THEN_FASTEST,
        on_slow_compile: Callable[[GraphKey], None] | None = None,
    ) -> None:
        self._config = config
        self._first_use, self._on_slow_compile = first_use, on_slow_compile
        self._counter = CompilationCounter()
        self._warm: dict[GraphKey, CompiledGraph] = {}
        self._extra: OrderedDict[GraphKey, _Extra] = OrderedDict()
        self._run_alone: RunAlone = at_once
        # A graph that requests wait for does not wait for graphs that replace others.
        self._first_compiler = ThreadPoolExecutor(1, thread_name_prefix="first-compiler")
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compiler")
        set_compute_threads(config.compute_threads)
        self._max_streams = max_streams(config.compute_streams)
        self._sources: dict[str, GraphSource] = {}
        for spec in model_specs(config):
            self._sources[spec.id] = open_source(spec, config, self._counter)
        self._served = [source.served for source in self._sources.values()]
        self._update_catalog()

    @property
    def sources(self) -> Mapping[str, GraphSource]:
        """The models by their ids, in the order of the settings."""
        return self._sources

    @property
    def device_count(self) -> int:
        """On how many devices graphs may run; streams count as devices after the first."""
        return max([1 + self._max_streams, *(s.device_count for s in self._sources.values())])

    @property
    def compilation_count(self) -> int:
        """Graphs compiled since the start, warm-up included."""
        return self._counter.count

    @property
    def catalog(self) -> Catalog:
        """The models, and the graphs that are warm."""
        return self._catalog

    @property
    def warm(self) -> Mapping[GraphKey, CompiledGraph]:
        """The graphs that were compiled while warming up; with their streams, once these are."""
        return self._warm

    def warm_up(self) -> None:
        """Compiles every batch size of Grad-CAM at the default layers, and of the graphs of --warm.

        Raises:
            StartupError: A graph of --warm or a model cannot be compiled, or a model runs in
                training mode.
        """
        for key in self.warm_keys():
            try:
                self._warm[key] = self._compile(key)
            except InvalidRequestError as error:
                raise StartupError(str(error)) from error
        self._update_catalog()

    async def add_streams(
        self, run_alone: RunAlone, on_change: Callable[[], None] | None = None
    ) -> None:
        """Compiles the streams of the warm graphs, on a thread, and later those of other graphs.

        Meanwhile requests are answered by the whole CPU.

        Args:
            run_alone: Runs what may not run beside a batch; called on that thread.
            on_change: Called on the event loop when the catalog has changed.
        """
        self._run_alone = run_alone
        for key, whole in list(self._warm.items()):
            divided = await self._divide(key, whole)
            if divided is whole:
                continue
            self._warm[key] = divided  # images that wait or run keep the whole CPU
            self._update_catalog()
            if on_change is not None:
                on_change()

    async def _divide(self, key: GraphKey, whole: CompiledGraph) -> CompiledGraph:
        """Returns a graph with its streams, or as it is if it has none."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._compiler, whole.divided, self._run_alone)
        except Exception as error:  # noqa: BLE001 - the whole CPU still answers
            logger.warning("%s goes on without streams: %s", key, error)
            return whole

    def _update_catalog(self) -> None:
        """Describes the models by their warm graphs."""
        config = self._config
        graphs: dict[str, CompiledGraph] = {}
        for key, graph in self._warm.items():  # those of the default layer come first
            graphs.setdefault(key.model, graph)
        self._served = [
            replace(
                model,
                compiler=graphs[model.id].compiler,
                streams=graphs[model.id].stream_count,
                alone_s=graphs[model.id].min_s,
                image_s=graphs[model.id].image_s,
            )
            if model.id in graphs
            else model
            for model in self._served
        ]
        self._catalog = Catalog(
            tuple(self._served), tuple(self._warm), config.batch_sizes, config.max_targets
        )

    def warm_keys(self) -> list[GraphKey]:
        """Returns the graphs to compile before serving; the default model's default graph first.

        Raises:
            StartupError: No model has the layers of a --warm.
        """
        return list(dict.fromkeys(self._warm_keys()))

    def ready(self, key: GraphKey) -> CompiledGraph | None:
        """Returns the best graph that is compiled already, or None."""
        if key in self._warm:
            return self._warm[key]
        if key not in self._extra:
            return None
        self._extra.move_to_end(key)
        return self._extra[key].graph

    async def graph(self, key: GraphKey) -> CompiledGraph:
        """Returns a compiled graph; compiles it at its first use.

        Compiling takes seconds, on a thread of its own: other requests are not delayed.

        Raises:
            InvalidRequestError: The classes do not depend on a layer, or the graph is not
                compiled and this server compiles no graphs at first use.
        """
        if (graph := self.ready(key)) is not None:
            return graph
        if self._config.max_extra_graphs == 0 and not key.perturbed:
            raise InvalidRequestError(
                "layers",
                f"{key} is not compiled, and this server compiles nothing at first use; it has: "
                f"{'; '.join(dict.fromkeys(str(warm) for warm in self._warm))}. "
                f"Start it with --warm {warm_option(key)}",
            )
        if key not in self._extra:
            while len(self._extra) >= max(self._config.max_extra_graphs, 1):
                _, evicted = self._extra.popitem(last=False)
                evicted.stop_improving()
            extra = self._extra[key] = _Extra()
            extra.first = asyncio.create_task(self._compile_off_loop(key, extra))
        first = self._extra[key].first
        assert first is not None
        # A caller's cancellation must not stop a compilation that others wait for.
        return await asyncio.shield(first)

    def close(self) -> None:
        """Stops compiling; does not wait for a compilation that cannot be interrupted."""
        for extra in self._extra.values():
            extra.stop_improving()
        for threads in (self._first_compiler, self._compiler):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _compile_off_loop(self, key: GraphKey, extra: _Extra) -> CompiledGraph:
        loop = asyncio.get_running_loop()
        try:
            with self._reporting_if_slow(key):
                graph, is_fastest = await loop.run_in_executor(
                    self._first_compiler, self._compile_first, key
                )
        except BaseException:
            if self._extra.get(key) is extra:
                del self._extra[key]
            raise
        extra.graph = graph
        improves = self._first_use is FirstUse.SOONEST_THEN_FASTEST
        if improves and self._extra.get(key) is extra:
            extra.better = asyncio.create_task(self._improve(key, extra, graph, is_fastest))
        return graph

    async def _improve(
        self, key: GraphKey, extra: _Extra, graph: CompiledGraph, is_fastest: bool
    ) -> None:
        """Replaces a graph for later requests; items that wait or run keep the first."""
        loop = asyncio.get_running_loop()
        if not is_fastest:
            try:
                graph = await loop.run_in_executor(self._compiler, self._compile, key)
            except Exception as error:  # noqa: BLE001 - the first graph still answers
                logger.warning("%s goes on as it was compiled first: %s", key, error)
                return
            extra.graph = graph
        extra.graph = await self._divide(key, graph)

    @contextmanager
    def _reporting_if_slow(self, key: GraphKey) -> Iterator[None]:
        if self._on_slow_compile is None:
            yield
            return
        timer = asyncio.get_running_loop().call_later(SLOW_S, self._on_slow_compile, key)
        try:
            yield
        finally:
            timer.cancel()

    def _compile_first(self, key: GraphKey) -> tuple[CompiledGraph, bool]:
        """Returns a graph, and whether ``_compile`` gives no faster graph."""
        if self._first_use is not FirstUse.FASTEST:
            graph = self._sources[key.model].compile_soonest(key, self._sizes(key))
            if graph is not None:
                return graph, False
        return self._compile(key), True

    def _sizes(self, key: GraphKey) -> tuple[int, ...]:
        # Perturbed images come in numbers: one batch size is enough, and ready sooner.
        return self._config.batch_sizes[-1:] if key.perturbed else self._config.batch_sizes

    def _compile(self, key: GraphKey) -> CompiledGraph:
        return self._sources[key.model].compile(key, self._sizes(key))

    def _warm_keys(self) -> Iterator[GraphKey]:
        max_targets = self._config.max_targets
        for model in self._served:
            default = (model.default_layer,)
            yield from graph_keys(model, default, Method.GRAD_CAM, ScoreType.LOGIT, max_targets)
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
                yield from graph_keys(model, paths, wanted.method, wanted.score_type, max_targets)
