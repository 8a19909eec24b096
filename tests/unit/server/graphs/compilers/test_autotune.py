"""All compilers give the same answers; ``auto`` chooses the fastest that does."""

import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import metadata
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput, GraphTarget, by_rank
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.domain.registry import ONE_PASS_METHODS as METHODS
from gradcam_server.domain.registry import REGISTRY
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.errors import CompilerError, DisconnectedLayerError
from gradcam_server.graphs import timing
from gradcam_server.graphs.compilers import autotune, openvino
from gradcam_server.graphs.compilers.autotune import compile_graph
from gradcam_server.graphs.compilers.base import (
    COMPILERS,
    Prepare,
    Prepared,
    find_candidates,
    find_compiler,
)
from gradcam_server.graphs.compilers.streams import StreamTuner
from gradcam_server.graphs.compilers.timing_cache import TimingCache
from gradcam_server.graphs.executable import Array, CompilationCounter, CompiledGraph, Executables
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.graphs.threads import set_compute_threads
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.loaded import LoadedModel
from support.small_model import CLASSES, SIZE, load_small


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_small()


def graph(model: LoadedModel, *layers: str, method: Method = Method.GRAD_CAM) -> ExplanationGraph:
    key = GraphKey("small", layers or ("block",), method, ScoreType.LOGIT, 3)
    return ExplanationGraph(model, key, CompilationCounter())


def answers(compiled: CompiledGraph, count: int = 2, device: int = 0) -> list[GraphOutput]:
    images = np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    targets = [GraphTarget(by_rank(0)), GraphTarget(3, 1), GraphTarget(2)]
    return compiled.run([GraphItem(image, targets) for image in images], count, device)


def assert_alike(ours: list[GraphOutput], expected: list[GraphOutput], rtol: float) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert one.classes.tolist() == other.classes.tolist()
        for name in ("logits", "scores", "probabilities"):
            a, b = getattr(one, name), getattr(other, name)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())
        for a, b in zip(one.maps, other.maps, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("compiler", [Compiler.XLA, Compiler.OPENVINO])
@pytest.mark.parametrize("layers", [("block",), ("conv1",), ("bn1", "conv3")])
def test_all_compilers_agree(
    model: LoadedModel, compiler: Compiler, layers: tuple[str, ...]
) -> None:
    """Logits, classes, contrasts and maps of each are TensorFlow's, at every batch size."""
    expected = compile_graph(graph(model, *layers), (1, 2), Compiler.TENSORFLOW)
    ours = compile_graph(graph(model, *layers), (1, 2), compiler)
    assert ours.compiler is compiler
    for count in (1, 2):
        assert_alike(answers(ours, count), answers(expected, count), rtol=1e-4)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads compute in this process."""
    set_compute_threads(2)
    yield
    set_compute_threads(None)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("wanted", [0, 2])
def test_streams_give_the_same_answers(model: LoadedModel, wanted: int) -> None:
    """The whole CPU and each of its streams, alone and side by side."""
    tuner = StreamTuner("small", wanted)
    compiled = compile_graph(graph(model), (1, 2), Compiler.OPENVINO, streams=tuner).divided()
    assert compiled.stream_count == 2
    expected = answers(compiled)
    with ThreadPoolExecutor() as pool:
        for device in range(1, compiled.device_count):
            assert_alike(answers(compiled, device=device), expected, rtol=1e-4)
        for found in pool.map(partial(answers, compiled, 2), range(compiled.device_count)):
            assert_alike(found, expected, rtol=1e-4)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("compiler", [Compiler.OPENVINO, Compiler.TENSORFLOW])
@pytest.mark.parametrize("perturbed", [False, True])
def test_streams_are_for_graphs_of_one_pass_and_compilers_that_have_them(
    model: LoadedModel, compiler: Compiler, perturbed: bool
) -> None:
    """Large batches of perturbed images have the whole CPU, so that none is in the way for long."""
    key = dataclasses.replace(graph(model).key, perturbed=perturbed)
    explained = ExplanationGraph(model, key, CompilationCounter())
    compiled = compile_graph(explained, (1,), compiler, streams=StreamTuner("small", 2)).divided()
    assert compiled.has_streams is (compiler is Compiler.OPENVINO and not perturbed)


@pytest.mark.parametrize("method", METHODS)
def test_openvino_computes_the_methods(model: LoadedModel, method: Method) -> None:
    """Each agrees with TensorFlow's executor, which runs EigenGrad-CAM in OpenVINO's place."""
    expected = compile_graph(graph(model, method=method), (2,), Compiler.TENSORFLOW)
    ours = compile_graph(graph(model, method=method), (2,), Compiler.OPENVINO)
    unknown = REGISTRY[method].decomposes
    assert ours.compiler is (Compiler.TENSORFLOW if unknown else Compiler.OPENVINO)
    assert_alike(answers(ours), answers(expected), rtol=1e-3)


def test_openvino_holds_one_model_for_all_batch_sizes(model: LoadedModel) -> None:
    """The weights are in memory once, and the graph is traced once."""
    counter = CompilationCounter()
    prepared = openvino.prepare(
        ExplanationGraph(model, graph(model).key, counter), Precision.FLOAT32
    )
    assert prepared(1)[0] is prepared(4)[0]
    assert counter.count == 1


def test_what_openvino_cannot_convert_runs_elsewhere(
    model: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """A log line says why."""
    with caplog.at_level(logging.WARNING):
        compile_graph(graph(model, method=Method.EIGEN_GRAD_CAM), (1,), Compiler.OPENVINO)
    assert "SelfAdjointEigV2" in caplog.text


class _Clock:
    """A clock that only fakes advance, so that other load of the machine does not count."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


_CLOCK = _Clock()


class _Fake:
    """A compiler whose runs take a time by ``_CLOCK``, and whose answers may be wrong."""

    def __init__(self, takes_s: float = 0.01, error: float = 0.0) -> None:
        self._takes_s, self._error = takes_s, error
        self.calls = 0

    def prepare(self, graph: ExplanationGraph, precision: Precision) -> Prepared:
        executable = cache(find_compiler(Compiler.TENSORFLOW)(graph, precision))  # traced once

        def run(*arrays: Array) -> Sequence[Array]:
            self.calls += 1
            _CLOCK.now += self._takes_s
            logits, *others = executable(len(arrays[0]))[0](*arrays)
            noise = np.random.default_rng(2).standard_normal(logits.shape, np.float32)
            return logits + np.float32(self._error) * noise, *others

        return lambda _: (run,)


def use(patch: pytest.MonkeyPatch, *candidates: Compiler, **fakes: _Fake) -> None:
    """Replaces compilers by fakes, and the candidates of ``auto``, if any are given."""

    def find(compiler: Compiler) -> Prepare:
        if compiler.value in fakes:
            return fakes[compiler.value].prepare
        return find_compiler(compiler)

    patch.setattr(autotune, "find_compiler", find)
    patch.setattr(timing, "perf_counter", _CLOCK)
    if candidates:
        patch.setattr(autotune, "find_candidates", lambda device: candidates)


@pytest.mark.parametrize("slow", ["openvino", "xla"])
def test_auto_keeps_the_fastest_and_caches_the_times(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slow: str
) -> None:
    """The second time no other is tried; without a timing cache all are."""
    fakes = {"openvino": _Fake(), "xla": _Fake()}
    fakes[slow] = _Fake(takes_s=0.02)
    use(monkeypatch, Compiler.OPENVINO, Compiler.XLA, **fakes)
    cache = TimingCache(tmp_path / "times.json")
    first = compile_graph(graph(model), (1,), Compiler.AUTO, timing_cache=cache)
    assert first.compiler.value != slow
    tried = fakes[slow].calls
    assert tried > 0
    assert compile_graph(graph(model), (1,), timing_cache=cache).compiler is first.compiler
    assert fakes[slow].calls == tried
    compile_graph(graph(model), (1,))
    assert fakes[slow].calls > tried


def test_a_compiler_with_other_answers_is_not_used(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However fast it is; a warning says so if the settings name it."""
    use(monkeypatch, Compiler.OPENVINO, openvino=_Fake(error=10.0))
    compiled = compile_graph(graph(model), (1,), Compiler.AUTO)
    assert compiled.compiler is Compiler.TENSORFLOW
    with caplog.at_level(logging.WARNING):
        compiled = compile_graph(graph(model), (1,), Compiler.OPENVINO)
    assert compiled.compiler is Compiler.TENSORFLOW
    assert "its answers differ" in caplog.text


class _Broken(_Fake):
    """Fails at one step of its work.

    Args:
        step: "prepare", "compile" (of a batch size), "run", or "check" (it gives too few outputs).
        error: What it raises then.
        smallest: Whether it fails at batch size 1 only.
    """

    def __init__(self, step: str, error: Exception, smallest: bool = False) -> None:
        super().__init__(takes_s=0.001)
        self.step, self.error, self.smallest = step, error, smallest

    def prepare(self, graph: ExplanationGraph, precision: Precision) -> Prepared:
        self.fail("prepare", 1)
        prepared = super().prepare(graph, precision)

        def compile_size(size: int) -> Executables:
            self.fail("compile", size)

            def run(*arrays: Array) -> Sequence[Array]:
                self.fail("run", len(arrays[0]))
                outputs = prepared(size)[0](*arrays)
                return outputs[:-1] if self.step == "check" else outputs

            return (run,)

        return compile_size

    def fail(self, step: str, size: int) -> None:
        if step == self.step and (size == 1 or not self.smallest):
            raise self.error


FAILURES = {
    "prepare": _Broken("prepare", ValueError("zip() argument 2 is shorter than argument 1")),
    "compile": _Broken("compile", RuntimeError("Heading:\nno memory")),
    "run": _Broken("run", tf.errors.InvalidArgumentError(None, None, "Cannot reshape")),
    "check": _Broken("check", RuntimeError()),
    "smallest": _Broken("compile", KeyError("x"), smallest=True),
    "smallest run": _Broken("run", AssertionError(), smallest=True),
}


@pytest.mark.parametrize("wanted", [Compiler.OPENVINO, Compiler.AUTO])
@pytest.mark.parametrize("failure", FAILURES)
def test_whatever_a_compiler_raises_is_its_own_failure(
    model: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wanted: Compiler,
    failure: str,
) -> None:
    """In conversion, compilation, run or verification, at any size: another compiler is used."""
    both = Compiler.OPENVINO, Compiler.XLA
    use(monkeypatch, *both, openvino=FAILURES[failure], xla=_Fake(takes_s=0.01))
    with caplog.at_level(logging.WARNING):
        compiled = compile_graph(graph(model), (1, 2), wanted)
    auto = wanted is Compiler.AUTO
    assert compiled.compiler is (Compiler.XLA if auto else Compiler.TENSORFLOW)
    (line,) = (one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)
    assert line.startswith("openvino does not compile small, gradcam")
    expected = compile_graph(graph(model), (2,), Compiler.TENSORFLOW)
    assert_alike(answers(compiled), answers(expected), rtol=1e-4)


def test_a_cached_compiler_that_fails_is_replaced(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All are timed again, and the cache then holds the other compiler's time."""
    both = Compiler.OPENVINO, Compiler.XLA
    cache = TimingCache(tmp_path / "times.json")
    use(monkeypatch, *both, openvino=_Fake(takes_s=0.001), xla=_Fake())
    assert compile_graph(graph(model), (1,), timing_cache=cache).compiler is Compiler.OPENVINO
    for failure in ("run", "prepare"):
        use(monkeypatch, openvino=FAILURES[failure], xla=_Fake())
        assert compile_graph(graph(model), (1,), timing_cache=cache).compiler is Compiler.XLA
    use(monkeypatch, openvino=_Fake(takes_s=0.001), xla=_Fake())
    assert compile_graph(graph(model), (1,), timing_cache=cache).compiler is Compiler.XLA


def test_if_all_compilers_fail_the_error_names_their_reasons(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One short line for each, however long the libraries' texts."""
    long = _Broken("run", RuntimeError("Graph execution error:\n\n" + "no memory " * 1000))
    both = Compiler.OPENVINO, Compiler.TENSORFLOW
    use(monkeypatch, *both, openvino=FAILURES["prepare"], tensorflow=long)
    with pytest.raises(
        CompilerError, match=r"^small, .* \(openvino: zip\(\) .*; tensorflow: no memory "
    ) as caught:
        compile_graph(graph(model), (1,), Compiler.AUTO)
    assert len(str(caught.value)) < 800


def test_a_layer_without_influence_is_not_the_compilers_fault(model: LoadedModel) -> None:
    """The caller learns of the layer, and no other compiler is tried."""
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.ops.stop_gradient(keras.layers.Conv2D(2, 3, name="stopped")(image))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(x))
    network = KerasNetwork(keras.Model(image, keras.layers.Dense(CLASSES)(x)))
    stopped = dataclasses.replace(model, network=network)
    for compiler in (Compiler.OPENVINO, Compiler.AUTO):
        with pytest.raises(DisconnectedLayerError, match="do not depend on stopped"):
            compile_graph(graph(stopped, "stopped"), (1,), compiler)


def test_a_compiler_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text names an extra that exists."""
    extras = metadata("gradcam-server").get_all("Provides-Extra")
    for compiler, row in COMPILERS.items():
        monkeypatch.setitem(sys.modules, row.module, None)
        with pytest.raises(CompilerError, match=rf"pip install 'gradcam-server\[{row.extra}\]'"):
            find_compiler(compiler)
        assert extras is not None
        assert row.extra in extras


def test_each_compiler_has_a_row() -> None:
    """Every choice of ``--compiler`` can be found, and ``auto`` has candidates on every device."""
    assert set(COMPILERS) == set(Compiler) - {Compiler.AUTO}
    assert find_candidates("CPU:1") == [one for one in COMPILERS if one is not Compiler.PJRT]
    assert find_candidates("GPU:0") == [Compiler.XLA]


def test_the_row_says_whose_answers_are_verified(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLA's answers are not compared, unless its row says so."""
    use(monkeypatch, xla=_Fake(error=10.0))
    assert compile_graph(graph(model), (1,), Compiler.XLA).compiler is Compiler.XLA
    row = dataclasses.replace(COMPILERS[Compiler.XLA], is_verified=True)
    monkeypatch.setitem(COMPILERS, Compiler.XLA, row)
    assert compile_graph(graph(model), (1,), Compiler.XLA).compiler is Compiler.TENSORFLOW


@pytest.mark.parametrize("wanted", [Compiler.XLA, Compiler.AUTO])
def test_a_compiler_without_the_precision_is_not_tried(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, wanted: Compiler
) -> None:
    """Its row lacks the precision: the reference is used."""
    fake = _Fake()
    use(monkeypatch, Compiler.XLA, xla=fake)
    row = dataclasses.replace(COMPILERS[Compiler.XLA], precisions=(Precision.FLOAT32,))
    monkeypatch.setitem(COMPILERS, Compiler.XLA, row)
    compiled = compile_graph(graph(model), (1,), wanted, Precision.BFLOAT16)
    assert (compiled.compiler, fake.calls) == (Compiler.TENSORFLOW, 0)


@pytest.mark.parametrize("compiler", [Compiler.TENSORFLOW, Compiler.XLA])
def test_bfloat16_is_close_and_its_maps_are_float32(model: LoadedModel, compiler: Compiler) -> None:
    """The network in bfloat16 gives other bits and the same picture; maps are in float32."""
    exact = answers(compile_graph(graph(model, "conv3"), (2,), compiler))
    rough = answers(compile_graph(graph(model, "conv3"), (2,), compiler, Precision.BFLOAT16))
    for one, other in zip(rough, exact, strict=True):
        assert one.logits.dtype == one.maps[0].dtype == np.float32
        assert not np.array_equal(one.maps[0], other.maps[0])
        assert np.corrcoef(one.maps[0][1].ravel(), other.maps[0][1].ravel())[0, 1] > 0.99
    again = answers(compile_graph(graph(model, "conv3"), (2,), compiler))
    assert_alike(again, exact, rtol=1e-6)
