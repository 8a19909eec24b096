"""Chooses the compiler of a graph: the one of the settings, or the fastest on this machine."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.errors import CompilerError, DisconnectedLayerError, quote
from gradcam_server.graphs.compilers.base import (
    COMPILERS,
    REFERENCE,
    Prepared,
    find_candidates,
    find_compiler,
)
from gradcam_server.graphs.compilers.streams import Divisible, StreamTuner
from gradcam_server.graphs.compilers.timing_cache import TimingCache
from gradcam_server.graphs.executable import (
    Array,
    CompiledGraph,
    Divide,
    Division,
    Executable,
    Executables,
    RunAlone,
)
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.graphs.timing import noise_batch, seconds_by_size, seconds_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

_VERIFIED_IMAGES = 2
_ROUNDS = 5
# A compiler that takes longer than this multiple of the quickest is not timed again.
_MAX_SLOWDOWN = 1.5
# Between the answers to noise of a compiler and of the reference in float32.
_MIN_CORRELATION = {
    Precision.FLOAT32: 0.9999,
    Precision.BFLOAT16: 0.95,
    Precision.FLOAT16: 0.99,
}


def compile_graph(
    graph: ExplanationGraph,
    batch_sizes: Sequence[int],
    compiler: Compiler = Compiler.AUTO,
    precision: Precision = Precision.FLOAT32,
    timing_cache: TimingCache | None = None,
    streams: StreamTuner | None = None,
) -> CompiledGraph:
    """Traces, compiles and times a graph at all batch sizes.

    Nothing is compiled after this but its streams (``CompiledGraph.divided``).

    Args:
        graph: The graph.
        batch_sizes: The batch sizes, ascending.
        compiler: The compiler; where it fails, the reference compiles, with a warning. ``AUTO``
            times all candidates of the device at the largest batch size and keeps the fastest.
        precision: The precision of the network.
        timing_cache: Keeps the times of ``AUTO`` across processes.
        streams: Chooses the streams; without it there are none.

    Raises:
        CompilerError: No compiler can compile the graph in this precision.
        DisconnectedLayerError: The scores don't depend on one of the layers.
    """
    return _Trials(graph, batch_sizes, precision, streams).compile(compiler, timing_cache)


class _Trials:
    """Tries compilers. Any exception is a failure of its compiler: the next is tried."""

    def __init__(
        self,
        graph: ExplanationGraph,
        batch_sizes: Sequence[int],
        precision: Precision,
        streams: StreamTuner | None,
    ) -> None:
        self._graph, self._sizes, self._precision = graph, batch_sizes, precision
        self._streams = streams
        self._largest = max(batch_sizes)
        self._prepared: dict[Compiler, Prepared] = {}
        self._executables: dict[Compiler, Executables] = {}  # of the largest batch size
        self._failures: dict[Compiler, str] = {}

    def compile(self, wanted: Compiler, timing_cache: TimingCache | None) -> CompiledGraph:
        if wanted is Compiler.AUTO:
            order, level = self._by_speed(timing_cache), logging.INFO
        else:
            order, level = [wanted], logging.WARNING
        for compiler in dict.fromkeys((*order, REFERENCE)):
            if compiler in self._failures or not self._try(compiler, level):
                continue
            compile_all = partial(self._compile_all, compiler)
            if compiled := self._contained(compiler, level, compile_all):
                return compiled
        reasons = "; ".join(f"{compiler}: {why}" for compiler, why in self._failures.items())
        raise CompilerError(
            f"{self._graph.key} cannot be compiled in {self._precision} ({reasons})"
        )

    def _compile_all(self, compiler: Compiler) -> CompiledGraph:
        """Compiles the other batch sizes, and times all."""
        executables = {
            size: self._executables[compiler]
            if size == self._largest
            else self._prepared[compiler](size)
            for size in self._sizes
        }
        cost_s = seconds_by_size(
            {size: of_size[0] for size, of_size in executables.items()},
            partial(make_noise, self._graph),
        )
        logger.info(
            "Compiled %s in %s by %s; milliseconds by batch size: %s",
            *(self._graph.key, self._precision, compiler),
            ", ".join(f"{size}: {seconds * 1e3:.1f}" for size, seconds in cost_s.items()),
        )
        key, input_size = self._graph.key, self._graph.model.input_size
        depth = COMPILERS[compiler].depth_on(self._graph.model.device or "CPU:0")
        return CompiledGraph(
            *(key, input_size, compiler, executables, cost_s),
            depth=depth,
            divide=self._divide(compiler, cost_s),
        )

    def _divide(self, compiler: Compiler, cost_s: Mapping[int, float]) -> Divide | None:
        """Returns what compiles the streams, if the compiler has any."""
        prepared, streams = self._prepared[compiler], self._streams
        # Batches of perturbed images are large: in a stream they would be in the way for long.
        if streams is None or self._graph.key.perturbed or not isinstance(prepared, Divisible):
            return None
        name, make_batch = self._cache_key(), partial(make_noise, self._graph)

        def divide(run_alone: RunAlone) -> Division:
            return streams.divide(name, prepared, cost_s, make_batch, run_alone)

        return divide

    def _by_speed(self, timing_cache: TimingCache | None) -> list[Compiler]:
        """Returns the compilers that can compile the graph, the fastest first."""
        cache_key = self._cache_key()
        seconds = _known(timing_cache.get(cache_key)) if timing_cache else {}
        is_cached = bool(seconds)
        if is_cached and not self._try(min(seconds, key=seconds.__getitem__), logging.WARNING):
            seconds, is_cached = {}, False
        if not seconds:
            candidates = [
                compiler
                for compiler in find_candidates(self._graph.model.device or "CPU")
                if compiler not in self._failures and self._try(compiler, logging.INFO)
            ]
            seconds = self._race(candidates)
            if timing_cache and seconds:
                timing_cache.put(
                    cache_key, {compiler.value: took for compiler, took in seconds.items()}
                )
        order = sorted(seconds, key=seconds.__getitem__)
        if order:
            logger.info(
                "%s is the fastest for %s in %s%s; milliseconds at batch size %d: %s",
                *(order[0], self._graph.key, self._precision),
                " (measured before)" if is_cached else "",
                self._largest,
                ", ".join(f"{compiler}: {took * 1e3:.1f}" for compiler, took in seconds.items()),
            )
        # The slower compilers hold memory; they compile again should the fastest fail.
        self._prepared = {compiler: self._prepared[compiler] for compiler in order[:1]}
        self._executables = {compiler: self._executables[compiler] for compiler in order[:1]}
        return order

    def _race(self, candidates: Sequence[Compiler]) -> dict[Compiler, float]:
        """Times compilers in turns, so that other load of the machine falls on all alike.

        Returns:
            The seconds of each compiler's quickest run; nothing of a compiler that fails.
        """
        arguments = make_noise(self._graph, self._largest)
        best = dict.fromkeys(candidates, math.inf)
        for number in range(_ROUNDS):
            quickest = min(best.values(), default=0.0)
            for compiler, seconds in list(best.items()):
                if number == 0 or seconds < _MAX_SLOWDOWN * quickest:
                    run = partial(seconds_of, self._executables[compiler][0], arguments)
                    took = self._contained(compiler, logging.WARNING, run)
                    if took is None:
                        del best[compiler]
                    else:
                        best[compiler] = min(seconds, took)
        return best

    def _cache_key(self) -> str:
        network = self._graph.model.network
        layers = [(layer.name, layer.type, layer.output_shape) for layer in network.layers]
        key = self._graph.key
        return repr((key, self._graph.model.input_size, self._largest, self._precision, layers))

    def _try(self, compiler: Compiler, level: int) -> bool:
        """Compiles and runs the largest batch size; returns whether the compiler can be used."""
        if compiler in self._executables:
            return True

        def attempt() -> bool:
            row = COMPILERS[compiler]
            if self._precision not in row.precisions:
                raise CompilerError(f"it does not compute in {self._precision}")
            prepared = find_compiler(compiler)(self._graph, self._precision)
            executables = prepared(self._largest)
            if row.is_verified:
                check(self._graph, executables[0], self._precision)
            executables[0](*make_noise(self._graph, self._largest))  # XLA compiles only now
            self._prepared[compiler], self._executables[compiler] = prepared, executables
            return True

        return bool(self._contained(compiler, level, attempt))

    def _contained(self, compiler: Compiler, level: int, work: Callable[[], T]) -> T | None:
        """Returns the result of ``work``; None if it fails, which is logged.

        Args:
            compiler: The compiler that fails if ``work`` does.
            level: The level of the log line of a CompilerError; other errors are warnings.
            work: The step that may fail.

        Raises:
            DisconnectedLayerError: The fault is the graph's, not the compiler's.
        """
        try:
            return work()
        except DisconnectedLayerError:
            raise
        except Exception as error:
            level = level if isinstance(error, CompilerError) else logging.WARNING
            self._failures[compiler] = quote(error)
            logger.log(level, "%s does not compile %s: %s", compiler, self._graph.key, quote(error))
            logger.debug("The failure of %s", compiler, exc_info=error)
            return None


def check(graph: ExplanationGraph, executable: Executable, precision: Precision) -> None:
    """Compares the answers to noise with those of the reference compiler in float32.

    Raises:
        CompilerError: The answers differ.
    """
    reference = find_compiler(REFERENCE)(graph, Precision.FLOAT32)(_VERIFIED_IMAGES)[0]
    arguments = make_noise(graph, _VERIFIED_IMAGES)
    for ours, expected in zip(executable(*arguments), reference(*arguments), strict=True):
        if (found := _correlation(ours, expected)) < _MIN_CORRELATION[precision]:
            raise CompilerError(f"its answers differ: a correlation of {found:.4f}")


def make_noise(graph: ExplanationGraph, batch_size: int) -> list[Array]:
    """Makes a batch of images of noise for a graph."""
    model = graph.model
    return noise_batch(graph.key, model.input_size, model.network.class_count, batch_size)


def _known(cached: Mapping[str, float] | None) -> dict[Compiler, float]:
    return {Compiler(name): took for name, took in (cached or {}).items() if name in COMPILERS}


def _correlation(ours: Array, expected: Array) -> float:
    """Returns Pearson's correlation; 1 for equal constants, such as two empty maps."""
    x, y = (np.asarray(values, np.float64).ravel() for values in (ours, expected))
    if not (x.std() and y.std()):
        return float(np.allclose(x, y, rtol=1e-2, atol=1e-6))
    return float(np.corrcoef(x, y)[0, 1])
