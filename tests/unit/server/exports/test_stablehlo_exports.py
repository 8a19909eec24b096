"""An export in StableHLO answers as TensorFlow does, without TensorFlow, and is checked whole."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo
from safetensors.numpy import save

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import (
    GraphItem,
    GraphKey,
    GraphOutput,
    GraphTarget,
    by_rank,
)
from gradcam_server.domain.options import Compiler, GraphFormat, Precision
from gradcam_server.domain.registry import ONE_PASS_METHODS
from gradcam_server.domain.requests import ScoreType
from gradcam_server.engine.engine import Engine
from gradcam_server.engine.sources.model import ModelSource
from gradcam_server.errors import InvalidRequestError, StartupError
from gradcam_server.exports.files import hash_file
from gradcam_server.exports.manifest import MANIFEST, WEIGHTS, read_manifest
from gradcam_server.exports.writer import write
from gradcam_server.graphs.compilers.soonest import SoonestCompiler
from gradcam_server.graphs.executable import CompilationCounter
from gradcam_server.graphs.explanation import ExplanationGraph
from support.once import made_once
from support.small_model import SIZE
from support.xla_exports import (
    DEFAULT,
    MANY_PASS_KEYS,
    METHOD_KEYS,
    SMALL_LAYERS,
    TARGETS,
    cache_folder,
    exported_small,
    load_small,
)

SIZES = (1, 2)
CHANNELS = replace(DEFAULT, layers=("conv3",), max_targets=1, perturbed=True, channel_count=5)
FEWER_CHANNELS = replace(CHANNELS, channel_count=3)

EXPORTS = {
    "float32": (Precision.FLOAT32, SIZES, [DEFAULT, CHANNELS]),
    "bfloat16": (Precision.BFLOAT16, (2,), [DEFAULT]),
}

Break = Callable[[Path], object]

# Answers by key, device and batch size; then what the server says of its weights, and what was
# read from the compilation cache and what was not there.
SERVE = """
import pickle, sys
sys.modules["tensorflow"] = sys.modules["keras"] = None
from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.engine import Engine
from gradcam_server.graphs.compilers.pjrt_runtime import CACHE_COUNTER as counter
settings, requests = pickle.load(sys.stdin.buffer)
source = Engine(ServeConfig(**settings)).sources["small"]
answers = {}
for key, items, sizes in requests:
    graph = source.compile(key, sizes)
    for device in range(graph.device_count):
        for size in sizes:
            answers[key, device, size] = graph.run(items[:size], size, device)
found = answers, source.served.weights, counter.hits, counter.misses
sys.stdout.buffer.write(pickle.dumps(found))
"""


def items_for(key: GraphKey) -> list[GraphItem]:
    images = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    targets = [GraphTarget(2, 4), GraphTarget(by_rank(0))][: key.max_targets]
    return [GraphItem(image.astype(key.pixel_type), targets) for image in images]


def answers_of_tensorflow(
    source: ModelSource, precision: Precision, keys: Iterable[GraphKey]
) -> Iterator[tuple[tuple[Precision, GraphKey], list[GraphOutput]]]:
    """Yields the answers of each graph to its items; the maps are computed eagerly."""
    compile_graph = SoonestCompiler(precision)
    for key in keys:
        graph = ExplanationGraph(source.loaded, key, CompilationCounter())
        items = items_for(key)
        yield (precision, key), compile_graph(graph, (2,)).run(items, len(items))


def write_all(folder: Path) -> None:
    """Exports a model in float32 and bfloat16."""
    folder.mkdir()
    source = load_small(exported_small())
    for name, (precision, sizes, keys) in EXPORTS.items():
        write(
            *(source.loaded, source.served, keys, sizes, folder / name, precision),
            graph_format=GraphFormat.STABLEHLO,
        )


@pytest.fixture(scope="module")
def made() -> Path:
    return made_once("small-stablehlo", write_all)


@pytest.fixture(scope="module")
def expected() -> dict[tuple[Precision, GraphKey], list[GraphOutput]]:
    """TensorFlow's answers to the items of a key."""
    source = load_small(exported_small())
    exact = [DEFAULT, FEWER_CHANNELS, *METHOD_KEYS, *MANY_PASS_KEYS]
    return {
        **dict(answers_of_tensorflow(source, Precision.FLOAT32, exact)),
        **dict(answers_of_tensorflow(source, Precision.BFLOAT16, [DEFAULT])),
    }


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the export in float32, which tests may break."""
    return Path(shutil.copytree(made / "float32", tmp_path / "copy"))


def serve(
    folder: Path, keys: Mapping[GraphKey, tuple[int, ...]], **more: Any
) -> tuple[dict[Any, Any], str, int, int]:
    """Runs ``SERVE`` in a process in which TensorFlow cannot be imported."""
    settings = {
        "model": (f"small={folder}",),
        "batch_sizes": SIZES,
        "max_targets": TARGETS,
        **more,
    }
    run = subprocess.run(
        [sys.executable, "-c", SERVE],
        input=pickle.dumps(
            (settings, [(key, items_for(key), sizes) for key, sizes in keys.items()])
        ),
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    return pickle.loads(run.stdout)


def assert_alike(ours: list[GraphOutput], theirs: list[GraphOutput], tolerance: float) -> None:
    """The classes are the same; numbers differ by less than a share of the largest."""
    for one, other in zip(ours, theirs, strict=False):
        assert one.classes.tolist() == other.classes.tolist()
        for mine, exact in (
            (one.logits, other.logits),
            (one.scores, other.scores),
            *zip(one.maps, other.maps, strict=True),
        ):
            scale = np.abs(exact).max()
            assert scale > 0
            np.testing.assert_allclose(mine, exact, rtol=0, atol=tolerance * scale)


def settings(folder: Path, **more: Any) -> ServeConfig:
    given = {"batch_sizes": SIZES, "max_targets": TARGETS, **more}
    return ServeConfig(model=(f"small={folder}",), **given)


def assert_answers(
    answers: dict[Any, list[GraphOutput]], expected: dict[Any, list[GraphOutput]]
) -> None:
    for (key, _, size), found in answers.items():
        assert len(found) == size
        assert_alike(found, expected[Precision.FLOAT32, key], 1e-4)


def test_all_methods_answer_as_tensorflow_does(expected: dict[Any, list[GraphOutput]]) -> None:
    """Each at two layers with both scores, by modules for two images; one image is padded."""
    explained = {(key.method, layer, key.score_type) for key in METHOD_KEYS for layer in key.layers}
    assert explained == set(product(ONE_PASS_METHODS, SMALL_LAYERS, ScoreType))
    keys = {key: (2 - number % 2,) for number, key in enumerate([*METHOD_KEYS, *MANY_PASS_KEYS])}
    answers, *_ = serve(exported_small() / "export", keys, cache_dir=str(cache_folder()))
    assert len(answers) == len(keys)
    assert_answers(answers, expected)


def test_a_second_start_compiles_nothing(
    made: Path,
    tmp_path: Path,
    expected: dict[Any, list[GraphOutput]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It finds what the first start compiled, by another path to the same folder, too."""
    monkeypatch.chdir(tmp_path)
    keys = {DEFAULT: SIZES, FEWER_CHANNELS: (2,)}
    for cache, found in ((str(tmp_path), (0, 3)), (".", (3, 0))):
        answers, weights, hits, misses = serve(made / "float32", keys, cache_dir=cache)
        assert_answers(answers, expected)
        assert "float32 (true float32)" in weights
        assert (hits, misses) == found


def test_bfloat16_takes_half_the_bytes(
    made: Path, tmp_path: Path, expected: dict[Any, list[GraphOutput]]
) -> None:
    """Two devices answer as TensorFlow does in bfloat16; weights that need it stay in float32."""
    answers, weights, _, _ = serve(
        made / "bfloat16", {DEFAULT: (2,)}, device=("CPU:0", "CPU:1"), cache_dir=str(tmp_path)
    )
    assert {device for _, device, _ in answers} == {0, 1}
    for (key, _, _), found in answers.items():
        assert_alike(found, expected[Precision.BFLOAT16, key], 2e-2)
        assert not np.array_equal(found[0].logits, expected[Precision.FLOAT32, key][0].logits)
    assert "bfloat16" in weights
    stored = dict(safetensors.deserialize((made / "bfloat16" / WEIGHTS).read_bytes()))
    assert stored["conv3/kernel:bfloat16"]["dtype"] == "BF16"
    assert stored["logits/kernel:float32"]["dtype"] == "F32"  # its columns are the gradients
    sizes = [
        (made / precision / WEIGHTS).stat().st_size
        for precision in (Precision.BFLOAT16, Precision.FLOAT32)
    ]
    assert sizes[0] < 0.7 * sizes[1]


def test_the_manifest_says_how_it_agrees_with_tensorflow(made: Path) -> None:
    """The agreement is measured in float32, too; every file has its hash, and weights are once."""
    exact, rough = (read_manifest(made / one) for one in (Precision.FLOAT32, Precision.BFLOAT16))
    assert exact.agreement is not None
    assert rough.agreement is not None
    assert exact.agreement.image_count == rough.agreement.image_count == 64
    assert exact.agreement.largest_map_difference is not None
    assert rough.agreement.largest_map_difference is not None
    assert exact.agreement.largest_map_difference < 1e-4 < rough.agreement.largest_map_difference
    assert exact.graph_format is GraphFormat.STABLEHLO
    assert exact.versions["jax"]
    folder = made / "float32"
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *exact.sha256}
    assert WEIGHTS in exact.sha256
    for path in folder.iterdir():  # nothing of the exporting machine
        assert str(Path.home()).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


def test_an_export_that_disagrees_is_not_written(tmp_path: Path) -> None:
    """The error has the correlation, and no folder is left; int8 is refused at once."""
    source = load_small(exported_small())
    for precision, text in (
        (Precision.BFLOAT16, "at least 1.5 is wanted"),
        (Precision.INT8, "--for openvino"),
    ):
        with pytest.raises(StartupError, match=text):
            write(
                *(source.loaded, source.served, [DEFAULT], (1,), tmp_path / "export", precision),
                min_correlation=1.5,
                graph_format=GraphFormat.STABLEHLO,
            )
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_exported_is_refused(folder: Path) -> None:
    """The error has the option that exports it."""
    source = Engine(settings(folder)).sources["small"]
    for key, option in (
        (replace(DEFAULT, layers=("conv1",)), "--warm gradcam@conv1"),
        (replace(DEFAULT, perturbed=True), "--many-pass"),
        (replace(CHANNELS, channel_count=6), "--many-pass"),
    ):
        with pytest.raises(InvalidRequestError, match=f"not in the export.*{option}"):
            source.compile(key, SIZES)


def artifact(body: str) -> bytes:
    """Returns a module of one function."""
    of = "tensor<2xf32>"
    text = f"func.func @main(%x: {of}) -> {of} {{ {body} return %y : {of} }}"
    with mlir.make_ir_context(), ir.Location.unknown():
        module = ir.Module.parse(text)
        return stablehlo.serialize_portable_artifact(module, stablehlo.get_minimum_version())


def put(name: str, make: Callable[[bytes], bytes]) -> Break:
    """Replaces a file by a function of its content, and its hash and size in the manifest."""

    def apply(folder: Path) -> None:
        path, manifest = folder / name, folder / MANIFEST
        path.write_bytes(make(path.read_bytes()))
        document = json.loads(manifest.read_text())
        document["sha256"][name], document["sizes"][name] = hash_file(path), path.stat().st_size
        manifest.write_text(json.dumps(document))

    return apply


def change(apply: Callable[[Any], object]) -> Break:
    """Changes the manifest."""

    def to(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        apply(document)
        (folder / MANIFEST).write_text(json.dumps(document))

    return to


def weights(edit: Callable[[dict[str, Any]], object]) -> Break:
    """Changes the weights."""

    def make(content: bytes) -> bytes:
        stored = {
            name: np.frombuffer(row["data"], np.float32).reshape(row["shape"])
            for name, row in safetensors.deserialize(content)
        }
        edit(stored)
        return save(stored)

    return put(WEIGHTS, make)


KERNEL, MODULE = "conv3/kernel:float32", "graph_0_1.mlirbc"
CUSTOM_CALL = "%y = stablehlo.custom_call @run(%x) : (tensor<2xf32>) -> tensor<2xf32>"
REDUCE = """%y = "stablehlo.all_reduce"(%x) ({ ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    stablehlo.return %a : tensor<f32> }) {replica_groups = dense<0> : tensor<1x1xi64>}
    : (tensor<2xf32>) -> tensor<2xf32>"""
IDENTITY = "%y = stablehlo.add %x, %x : tensor<2xf32>"

BROKEN: dict[str, tuple[Break, str]] = {
    "another file": (
        lambda folder: (folder / MODULE).write_bytes(b"x"),
        "not the file that was exported",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "not whole"),
    "an empty module": (put(MODULE, lambda _: b""), "not a StableHLO module: other first bytes"),
    "a module as text": (put(MODULE, lambda _: b"module {}"), "other first bytes"),
    "half a module": (put(MODULE, lambda all_: all_[: len(all_) // 2]), "not a StableHLO module"),
    "noise in a module": (
        put(MODULE, lambda all_: all_[:40] + bytes(40) + all_[80:]),
        "not a StableHLO module",
    ),
    "code of the host": (put(MODULE, lambda _: artifact(CUSTOM_CALL)), "it calls 'run'"),
    "other devices": (put(MODULE, lambda _: artifact(REDUCE)), "all_reduce is not allowed"),
    "another graph": (
        put(MODULE, lambda _: artifact(IDENTITY)),
        "it has 1 of 3 inputs or outputs: images, classes, against",
    ),
    "another batch size": (
        change(lambda one: one["graphs"][0]["modules"].update({"1": "graph_0_2.mlirbc"})),
        r"images is uint8 \[2, 32, 32, 3\] in the module, and uint8 \[1, 32, 32, 3\] in the man",
    ),
    "another input size": (
        change(lambda one: one.update(input_size=[SIZE, 8])),
        r"images is .* and uint8 \[1, 32, 8, 3\]",
    ),
    "fewer classes": (change(lambda one: one["labels"].pop()), r"logits is .* float32 \[1, 5\]"),
    "fewer targets": (
        change(lambda one: one["graphs"][0]["key"].update(max_targets=1)),
        r"classes is .* int32 \[1, 1\] in the manifest",
    ),
    "perturbed images": (
        change(lambda one: one["graphs"][0]["key"].update(perturbed=True)),
        "images is uint8 .* and float32",
    ),
    "weights that are none": (put(WEIGHTS, lambda _: b"x"), "cannot be read as safetensors"),
    "weights of a foreign type": (
        put(WEIGHTS, lambda _: save({"x": np.zeros(2, np.int64)})),
        "weights of type 'I64', and should have only: F32, BF16",
    ),
    "a missing weight": (weights(lambda one: one.pop(KERNEL)), f"has no weight '{KERNEL}'"),
    "a weight of another shape": (
        weights(lambda one: one.update({KERNEL: np.zeros((3, 3, 8, 7), np.float32)})),
        r"conv3/kernel:float32 is float32 \[3, 3, 8, 8\] in the module, and float32 \[3, 3, 8, 7\] "
        "in weights.safetensors",
    ),
    "a weight of another type": (
        weights(lambda one: one.update({KERNEL: one[KERNEL].astype(ml_dtypes.bfloat16)})),
        "conv3/kernel:float32 is float32 .* and bfloat16",
    ),
    "a weight too few": (
        change(lambda one: one["graphs"][0]["weights"].pop()),
        "it has 8 of 7 inputs or outputs",
    ),
    "no modules": (
        change(lambda one: one["graphs"][0].update(modules={})),
        "modules must have positive batch sizes",
    ),
    "a module of Python": (
        change(lambda one: one["graphs"][0].update(modules={"1": "x.py"})),
        "modules must end in .mlirbc",
    ),
    "a module without hash": (
        change(lambda one: (one["sha256"].pop(MODULE), one["sizes"].pop(MODULE))),
        f"sha256 must have {MODULE}",
    ),
    "weights without hash": (
        change(lambda one: (one["sha256"].pop(WEIGHTS), one["sizes"].pop(WEIGHTS))),
        f"sha256 must have {WEIGHTS}",
    ),
    "no sizes": (change(lambda one: one.pop("sizes")), "sizes is missing"),
    "a graph of OpenVINO": (
        change(lambda one: one["graphs"][0].update(file="graph_0.xml")),
        "file and cost_s are of OpenVINO",
    ),
    "an unknown format": (
        change(lambda one: one.update(graph_format="onnx")),
        "graph_format must be one of openvino, stablehlo",
    ),
}


@pytest.mark.parametrize(("break_it", "text"), BROKEN.values(), ids=BROKEN)
def test_what_is_not_as_it_was_written_is_refused(
    folder: Path, break_it: Break, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error says what is wrong and what would be right; nothing is compiled or printed."""
    break_it(folder)
    with pytest.raises(StartupError, match=text):
        Engine(settings(folder))
    assert "error" not in capfd.readouterr().err


def test_an_unknown_device_is_refused(folder: Path) -> None:
    """The error lists the devices of JAX."""
    with pytest.raises(StartupError, match=r"--device GPU:99: .*it has: CPU:0"):
        Engine(settings(folder, device=("GPU:99",)))


def test_graphs_are_those_that_were_checked(folder: Path) -> None:
    """A folder that is replaced after the start has no effect on a graph's first use."""
    source = Engine(settings(folder)).sources["small"]
    for path in folder.iterdir():
        path.write_bytes(b"another file")
    compiled = source.compile(DEFAULT, (1,))
    assert compiled.compiler is Compiler.PJRT
    assert compiled.run(items_for(DEFAULT)[:1], 1)
