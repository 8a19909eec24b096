"""Which compiler runs a graph: the one that was asked for, or the fastest here."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np

from gradcam_server.domain.graph_io import NO_CLASS
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.errors import CompilerError, DisconnectedLayerError, quote
from gradcam_server.graphs.compilers.base import Prepared, find_compiler
from gradcam_server.graphs.compilers.timing_cache import Memory
from gradcam_server.graphs.executable import Array, CompiledGraph, Executable, Places
from gradcam_server.graphs.explanation import ExplanationGraph

logger = logging.getLogger(__name__)

T = TypeVar("T")

CANDIDATES = (Compiler.OPENVINO, Compiler.TENSORFLOW, Compiler.XLA)
_TIMED_RUNS = 3
_CHECKED = 2  # images
_TURNS = 5
_HOPELESS = 1.5  # times slower after one turn
# Of the answers to noise with those of TensorFlow's executor in float32.
_LEAST_CORRELATION = {
    Precision.FLOAT32: 0.9999,
    Precision.BFLOAT16: 0.95,
    Precision.FLOAT16: 0.99,
}


def compile_graph(
    graph: ExplanationGraph,
    batch_sizes: Sequence[int],
    compiler: Compiler = Compiler.AUTO,
    precision: Precision = Precision.FLOAT32,
    memory: Memory | None = None,
) -> CompiledGraph:
    """Traces, compiles and times the ladder. Nothing is compiled after this.

    Args:
        graph: The graph.
        batch_sizes: The ladder, ascending.
        compiler: What compiles; where it cannot, TensorFlow's executor does, with a warning.
            ``AUTO`` tries all at the largest size and keeps the fastest.
        precision: What the network is computed in.
        memory: Where the times of earlier trials are kept.

    Raises:
        CompilerError: No compiler can compile it in this precision.
        DisconnectedLayerError: The scores don't depend on one of the layers.
    """
    return _Trials(graph, batch_sizes, precision).compile(compiler, memory)


class _Trials:
    """Tries compilers. Whatever one of them raises is its own failure, and another is taken."""

    def __init__(
        self, graph: ExplanationGraph, batch_sizes: Sequence[int], precision: Precision
    ) -> None:
        self._graph, self._sizes, self._precision = graph, batch_sizes, precision
        self._largest = max(batch_sizes)
        self._prepared: dict[Compiler, Prepared] = {}
        self._places: dict[Compiler, Places] = {}
        self._failures: dict[Compiler, str] = {}

    def compile(self, compiler: Compiler, memory: Memory | None) -> CompiledGraph:
        if compiler is Compiler.AUTO:
            order, level = self._by_speed(memory), logging.INFO
        else:
            order, level = [compiler], logging.WARNING
        for one in dict.fromkeys((*order, Compiler.TENSORFLOW)):
            if one in self._failures or not self._try(one, level):
                continue
            if compiled := self._contained(one, level, partial(self._compile_all, one)):
                return compiled
        reasons = "; ".join(f"{one}: {reason}" for one, reason in self._failures.items())
        raise CompilerError(
            f"{self._graph.key} cannot be compiled in {self._precision} ({reasons})"
        )

    def _compile_all(self, compiler: Compiler) -> CompiledGraph:
        """Compiles the other batch sizes, and times all."""
        ladder = {
            size: self._places[compiler]
            if size == self._largest
            else self._prepared[compiler](size)
            for size in self._sizes
        }
        cost_s = {
            size: time_executable(self._graph, places[0], size) for size, places in ladder.items()
        }
        logger.info(
            "Compiled %s in %s by %s; milliseconds by batch size: %s",
            *(self._graph.key, self._precision, compiler),
            ", ".join(f"{size}: {seconds * 1e3:.1f}" for size, seconds in cost_s.items()),
        )
        key, input_size = self._graph.key, self._graph.model.input_size
        return CompiledGraph(key, input_size, compiler, ladder, cost_s)

    def _by_speed(self, memory: Memory | None) -> list[Compiler]:
        """Returns the compilers that can compile the graph, the fastest first."""
        question = self._question()
        seconds = _known(memory.recall(question)) if memory else {}
        remembered = bool(seconds)
        if remembered and not self._try(min(seconds, key=seconds.__getitem__), logging.WARNING):
            seconds, remembered = {}, False
        if not seconds:
            candidates = [one for one in self._candidates() if self._try(one, logging.INFO)]
            seconds = self._race(candidates)
            if memory and seconds:
                memory.remember(question, {one.value: took for one, took in seconds.items()})
        order = sorted(seconds, key=seconds.__getitem__)
        if order:
            logger.info(
                "%s is the fastest for %s in %s%s; milliseconds at batch size %d: %s",
                *(order[0], self._graph.key, self._precision),
                " (measured before)" if remembered else "",
                self._largest,
                ", ".join(f"{one}: {took * 1e3:.1f}" for one, took in seconds.items()),
            )
        # The slower ones hold memory, and are compiled again should the fastest fail.
        self._prepared = {one: self._prepared[one] for one in order[:1]}
        self._places = {one: self._places[one] for one in order[:1]}
        return order

    def _race(self, candidates: Sequence[Compiler]) -> dict[Compiler, float]:
        """Times in turns, so that what else the machine does falls on all alike."""
        arguments = _noise(self._graph, self._largest)
        best = dict.fromkeys(candidates, math.inf)
        for turn in range(_TURNS):
            least = min(best.values(), default=0.0)
            for one, seconds in list(best.items()):
                if turn == 0 or seconds < _HOPELESS * least:
                    run = partial(_seconds, self._places[one][0], arguments)
                    took = self._contained(one, logging.WARNING, run)
                    if took is None:
                        del best[one]
                    else:
                        best[one] = min(seconds, took)
        return best

    def _candidates(self) -> Sequence[Compiler]:
        on_gpu = (self._graph.model.device or "").startswith("GPU")
        candidates = (Compiler.XLA,) if on_gpu else CANDIDATES
        return [one for one in candidates if one not in self._failures]

    def _question(self) -> str:
        network = self._graph.model.network
        layers = [(layer.name, layer.type, layer.output_shape) for layer in network.layers]
        key = self._graph.key
        return repr((key, self._graph.model.input_size, self._largest, self._precision, layers))

    def _try(self, compiler: Compiler, level: int) -> bool:
        """Compiles for the largest batch size and runs it; returns whether that can be used."""
        if compiler in self._places:
            return True

        def attempt() -> bool:
            prepared = find_compiler(compiler)(self._graph, self._precision)
            places = prepared(self._largest)
            if compiler is Compiler.OPENVINO:  # the others are TensorFlow's own
                for place in places[:2]:  # all streams are alike
                    check(self._graph, place, self._precision)
            places[0](*_noise(self._graph, self._largest))  # XLA compiles only now
            self._prepared[compiler], self._places[compiler] = prepared, places
            return True

        return bool(self._contained(compiler, level, attempt))

    def _contained(self, compiler: Compiler, level: int, work: Callable[[], T]) -> T | None:
        """Returns what ``work`` returns; None if it fails, which is logged.

        Args:
            compiler: What fails if it does.
            level: Of the log line if the compiler says that it cannot; else it is a warning.
            work: What to do.

        Raises:
            DisconnectedLayerError: It is the graph's fault.
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
    """Compares answers to noise with those of TensorFlow's executor in float32.

    Raises:
        CompilerError: They differ.
    """
    reference = find_compiler(Compiler.TENSORFLOW)(graph, Precision.FLOAT32)(_CHECKED)[0]
    arguments = _noise(graph, _CHECKED)
    for ours, expected in zip(executable(*arguments), reference(*arguments), strict=True):
        if (found := _correlation(ours, expected)) < _LEAST_CORRELATION[precision]:
            raise CompilerError(f"its answers differ: a correlation of {found:.4f}")


def time_executable(graph: ExplanationGraph, executable: Executable, batch_size: int) -> float:
    """Returns the seconds of the quickest run, after one that warms up."""
    arguments = _noise(graph, batch_size)
    seconds = [_seconds(executable, arguments) for _ in range(1 + _TIMED_RUNS)]
    return min(seconds[1:])


def _noise(graph: ExplanationGraph, batch_size: int) -> list[Array]:
    images, classes, against = graph.signature(batch_size)
    random = np.random.default_rng(0)
    return [
        random.integers(0, 256, images.shape).astype(graph.key.pixel_type),
        random.integers(0, graph.model.network.class_count, classes.shape, np.int32),
        np.full(against.shape, NO_CLASS, np.int32),
    ]


def _seconds(executable: Executable, arguments: Sequence[Array]) -> float:
    started = perf_counter()
    executable(*arguments)
    return perf_counter() - started


def _known(remembered: Mapping[str, float] | None) -> dict[Compiler, float]:
    known = set(Compiler) - {Compiler.AUTO}
    return {Compiler(one): took for one, took in (remembered or {}).items() if one in known}


def _correlation(ours: Array, expected: Array) -> float:
    """Returns Pearson's correlation; 1 for constants that are alike, as empty maps are."""
    x, y = (np.asarray(one, np.float64).ravel() for one in (ours, expected))
    if not (x.std() and y.std()):
        return float(np.allclose(x, y, rtol=1e-2, atol=1e-6))
    return float(np.corrcoef(x, y)[0, 1])
