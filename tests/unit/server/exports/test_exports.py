"""An export answers as the model does, without TensorFlow, and is refused if it was changed."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import (
    NO_CLASS,
    GraphItem,
    GraphKey,
    GraphOutput,
    GraphTarget,
    by_rank,
)
from gradcam_server.domain.layers import Extent
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.engine.engine import Engine
from gradcam_server.engine.sources.model import ModelSource
from gradcam_server.errors import InvalidRequestError, StartupError
from gradcam_server.exports.files import hash_file
from gradcam_server.exports.manifest import MANIFEST, read_manifest
from gradcam_server.exports.writer import SAVED_MODEL, SIGNATURE, write
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph
from support.small_model import CLASSES, SIZE, build_network

TARGETS = 3
OF_PROBABILITY = "gradcam:probability@block"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.keras"
    build_network().save(path)
    return path


def settings(source: Path, **more: Any) -> ServeConfig:
    return ServeConfig(
        **{
            "model": (f"small={source}",),
            "batch_sizes": (1, 4),
            "compiler": Compiler.TENSORFLOW,
            "max_targets": TARGETS,
            **more,
        }
    )


def export(model: Path, folder: Path, *warm: str, **more: Any) -> Path:
    engine = Engine(settings(model, warm=warm, preprocessing=("lite",)))
    source = engine.sources["small"]
    assert isinstance(source, ModelSource)
    write(source.loaded, source.served, engine.warm_keys(), (1, 4), folder, **more)
    return folder


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "small"
    return export(model, folder, "layercam@conv3", OF_PROBABILITY)


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the default graph alone, without a declared preprocessing."""
    source = Engine(settings(model)).sources["small"]
    assert isinstance(source, ModelSource)
    key = GraphKey("small", ("block",), Method.GRAD_CAM, ScoreType.LOGIT, TARGETS)
    folder = tmp_path_factory.mktemp("exports") / "plain"
    write(source.loaded, source.served, [key], (1,), folder)
    return folder


def graph_of(source: Path, layer: str, method: Method, **more: Any) -> CompiledGraph:
    engine = Engine(settings(source, **more))
    key = GraphKey("small", (layer,), method, ScoreType.LOGIT, TARGETS)
    return engine.sources["small"].compile(key, (1, 4))


def answer(graph: CompiledGraph) -> list[GraphOutput]:
    images = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    targets = [GraphTarget(by_rank(0)), GraphTarget(2, 4)]
    return graph.run([GraphItem(image, targets) for image in images], 4)


def test_what_layers_cover_is_kept(exported: Path, tmp_path: Path) -> None:
    """Extents are kept; layers of older manifests, which have none, cover the whole input."""
    manifest = read_manifest(exported)
    assert {layer.extent for layer in manifest.layers} == {None}
    rows = json.loads(manifest.to_json())["layers"]
    assert {len(row) for row in rows} == {4}  # As before there were extents.
    first, *others = manifest.layers
    extent = Extent(-8.0, 0.0, 48.5, 32.0)
    changed = dataclasses.replace(
        manifest, layers=(dataclasses.replace(first, extent=extent), *others)
    )
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    (folder / MANIFEST).write_text(changed.to_json())
    assert read_manifest(folder).layers == changed.layers


@pytest.mark.parametrize(
    ("layer", "method"), [("block", Method.GRAD_CAM), ("conv3", Method.LAYER_CAM)]
)
def test_it_answers_as_the_model(model: Path, exported: Path, layer: str, method: Method) -> None:
    """The default graph and the named graph, at any batch size."""
    expected = answer(graph_of(model, layer, method, preprocessing=("lite",)))
    graph = graph_of(exported, layer, method)
    assert graph.batch_sizes == (1, 4)
    assert graph.cost_s[4] > 0
    for ours, theirs in zip(answer(graph), expected, strict=True):
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
        assert ours.classes.tolist() == theirs.classes.tolist()
        scale = np.abs(theirs.maps[0]).max()
        np.testing.assert_allclose(ours.maps[0], theirs.maps[0], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_of_a_mean_are_exported(activation: str, tmp_path: Path) -> None:
    """An export of a model that ends in probabilities reports and explains them."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 128)(x))
    heads = [keras.layers.Dense(3, activation)(x) for _ in range(2)]
    model = keras.Model(image, keras.layers.Average()(heads))
    model.save(tmp_path / "m.keras")
    source = Engine(settings(tmp_path / "m.keras")).sources["small"]
    assert isinstance(source, ModelSource)
    key = GraphKey("small", ("conv",), Method.GRAD_CAM, ScoreType.LOGIT, TARGETS)
    write(source.loaded, source.served, [key], (1, 4), tmp_path / "export")
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    items = [GraphItem(one, [GraphTarget(by_rank(0))]) for one in images]
    ours, theirs = (
        Engine(settings(path)).sources["small"].compile(key, (1, 4)).run(items, 4)
        for path in (tmp_path / "export", tmp_path / "m.keras")
    )
    expected = model(images.astype(np.float32), training=False)
    for one, other, probabilities in zip(ours, theirs, expected, strict=True):
        np.testing.assert_allclose(one.probabilities, probabilities, rtol=1e-4)
        assert np.abs(other.maps[0]).max() > 0
        scale = np.abs(other.maps[0]).max()
        np.testing.assert_allclose(one.maps[0], other.maps[0], rtol=1e-3, atol=1e-4 * scale)


def test_the_model_is_described_alike(model: Path, exported: Path) -> None:
    """Layers, classes, input size and preprocessing are the model's own."""
    ours = Engine(settings(exported)).catalog.find_model("small")
    theirs = Engine(settings(model, preprocessing=("lite",))).catalog.find_model("small")
    for name in (
        *("layers", "default_layer", "input_size"),
        *("preprocessing", "preprocessing_declared"),
    ):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.labels.labels == theirs.labels.labels


def test_an_export_keeps_that_nobody_declared_the_preprocessing(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The export warned; a server of it says "by default"."""
    with caplog.at_level(logging.WARNING):
        served = Engine(settings(plain)).catalog.models[0]
    assert (served.preprocessing, served.preprocessing_declared) == (Preprocessing.NONE, False)
    assert not caplog.records


def test_an_export_of_an_older_version_counts_as_declared(exported: Path, tmp_path: Path) -> None:
    """Its manifest does not say, so a server of it does not warn."""
    document = json.loads((exported / MANIFEST).read_text())
    del document["preprocessing_declared"], document["sizes"]
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    (folder / MANIFEST).write_text(json.dumps(document))
    assert read_manifest(folder).preprocessing_declared


def test_tensorflow_is_not_imported(exported: Path) -> None:
    """An engine of exports warms up without it, and without OpenVINO's converter and telemetry."""
    code = f"""
import sys
from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.engine import Engine
engine = Engine(ServeConfig(model=("small={exported}",), max_targets={TARGETS}))
engine.warm_up()
assert engine.catalog.models[0].compiler == "openvino"
unwanted = {{"tensorflow", "keras", "openvino.tools.ovc", "openvino_telemetry.main"}}
print(sorted(unwanted & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_what_was_not_exported_is_refused(exported: Path) -> None:
    """The error lists the exported graphs, and the option that exports the missing one."""
    with pytest.raises(InvalidRequestError, match=r"not in the export.*--warm gradcam\+\+@block"):
        graph_of(exported, "block", Method.GRAD_CAM_PLUS_PLUS)
    with pytest.raises(StartupError, match="not in the export"):
        Engine(settings(exported, warm=("hirescam@block",))).warm_up()


def test_the_option_that_an_error_names_exports_the_graph(
    model: Path, exported: Path, plain: Path
) -> None:
    """An export that was written with it has the graph, and answers as the model does."""
    key = GraphKey("small", ("block",), Method.GRAD_CAM, ScoreType.PROBABILITY, TARGETS)

    def compile_in(folder: Path) -> CompiledGraph:
        return Engine(settings(folder)).sources["small"].compile(key, (1,))

    with pytest.raises(InvalidRequestError, match="not in the export") as refused:
        compile_in(plain)
    assert str(refused.value).endswith(f"Export the model again with --warm {OF_PROBABILITY}")
    again = compile_in(exported)
    expected = Engine(settings(model, preprocessing=("lite",))).sources["small"].compile(key, (1,))
    image = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    item = GraphItem(image, [GraphTarget(by_rank(0))])
    (ours,), (theirs,) = again.run([item], 1), expected.run([item], 1)
    assert 0 < ours.scores[0] <= 1
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-4)
    np.testing.assert_allclose(ours.maps[0], theirs.maps[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "perturbed"),
    [(Method.GRAD_CAM, True), (Method.HIRES_CAM, True), (Method.EIGEN_GRAD_CAM, False)],
)
def test_what_cannot_be_exported_is_not_advised_to_be(
    exported: Path, method: Method, perturbed: bool
) -> None:
    """Methods of many passes and EigenGrad-CAM need the model itself; --warm would not help."""
    key = GraphKey("small", ("block",), method, ScoreType.LOGIT, 1, perturbed=perturbed)
    with pytest.raises(InvalidRequestError, match=r"serve .* file, not the export") as refused:
        Engine(settings(exported)).sources["small"].compile(key, (1,))
    assert "--warm" not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"max_targets": 5}, "--max-targets 3"),
        ({"preprocessing": ("tf",)}, "part of the export"),
        ({"outputs": ("sigmoid",)}, "part of the export"),
        ({"input_size": ("64x64",)}, "part of the export"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    exported: Path, more: dict[str, Any], text: str
) -> None:
    """Settings that are fixed in the graph cannot be changed."""
    with pytest.raises(StartupError, match=text):
        Engine(settings(exported, **more))


def _truncate(folder: Path) -> None:
    weights = folder / "graph_0.bin"
    weights.write_bytes(weights.read_bytes()[:-1])


def _other_format(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (_truncate, "not the file that was exported"),
        (lambda folder: (folder / "graph_0.bin").unlink(), "not whole"),
        (_other_format, "has format 99"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "not a manifest"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "not a manifest"),
    ],
    ids=["truncated", "missing", "format", "empty", "not JSON"],
)
def test_a_damaged_export_is_refused(
    model: Path, tmp_path: Path, exported: Path, break_it: Callable[[Path], object], text: str
) -> None:
    """Whatever damage the folder has."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(exported), str(folder)], check=True)
    Engine(settings(folder))
    break_it(folder)
    with pytest.raises(StartupError, match=text):
        Engine(settings(folder))


def test_every_file_has_its_hash(exported: Path) -> None:
    """Every file but the manifest is in the manifest."""
    files = {
        path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()
    }
    manifest = read_manifest(exported)
    assert files == {MANIFEST, *manifest.sha256}
    assert manifest.sizes == {name: (exported / name).stat().st_size for name in manifest.sha256}
    assert manifest.sha256["graph_0.bin"] == hash_file(exported / "graph_0.bin")
    assert manifest.versions["openvino"]


def test_the_saved_model_explains(model: Path, exported: Path) -> None:
    """TensorFlow alone loads it and calls its signature, as TensorFlow Serving does."""
    signature = tf.saved_model.load(str(exported / SAVED_MODEL)).signatures[SIGNATURE]
    images = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    classes = np.tile(np.array([by_rank(0), 2, 1], np.int32), (2, 1))
    found = signature(
        images=tf.constant(images),
        classes=tf.constant(classes),
        against=tf.constant(np.full_like(classes, NO_CLASS)),
    )
    graph = graph_of(exported, "block", Method.GRAD_CAM)
    targets = [GraphTarget(int(one)) for one in classes[0]]
    expected = graph.run([GraphItem(image, targets) for image in images], 4)
    for row, one in enumerate(expected):
        np.testing.assert_allclose(found["logits"][row], one.logits, rtol=1e-4, atol=1e-4)
        scale = np.abs(one.maps[0]).max()
        np.testing.assert_allclose(found["maps_0"][row], one.maps[0], atol=1e-4 * scale)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(3)
    for number in range(3):
        coarse = random.integers(0, 256, (5, 6, 3), np.uint8)
        image = cv2.resize(coarse, (60, 50), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


def test_int8_says_how_it_agrees(model: Path, tmp_path: Path, pictures: Path) -> None:
    """Its answers are near those of float32, and the manifest says how near."""
    folder = export(
        model, tmp_path / "int8", precision=Precision.INT8, samples=pictures, min_correlation=0.5
    )
    agreement = read_manifest(folder).agreement
    assert agreement is not None
    assert agreement.image_count == 64
    assert 0.5 < agreement.correlation_worst <= agreement.correlation_mean < 1
    assert agreement.largest_logit_difference > 0
    assert "3 images of the user" in agreement.images
    graph = graph_of(folder, "block", Method.GRAD_CAM)
    exact = graph_of(model, "block", Method.GRAD_CAM, preprocessing=("lite",))
    for ours, theirs in zip(answer(graph), answer(exact), strict=True):
        assert not np.array_equal(ours.logits, theirs.logits)
        np.testing.assert_allclose(
            ours.logits, theirs.logits, atol=0.2 * float(np.ptp(theirs.logits))
        )


def test_a_bad_calibration_is_refused(model: Path, tmp_path: Path, pictures: Path) -> None:
    """The error has both correlations, and no folder is left."""
    folder = tmp_path / "int8"
    with pytest.raises(StartupError, match="at least 1 is wanted"):
        export(model, folder, precision=Precision.INT8, samples=pictures, min_correlation=1.0)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(model: Path, exported: Path, tmp_path: Path) -> None:
    """A folder that exists stays as it is; one without images is refused."""
    with pytest.raises(StartupError, match="exists already"):
        export(model, exported)
    with pytest.raises(StartupError, match="there are no images"):
        export(model, tmp_path / "x", precision=Precision.INT8, samples=tmp_path)


def test_graphs_are_counted(exported: Path) -> None:
    """compilation_count is the number of graphs read."""
    counter = CompilationCounter()
    engine = Engine(settings(exported, warm=("layercam@conv3",)))
    engine.warm_up()
    assert counter.count == 0
    assert engine.compilation_count == len(engine.catalog.warm)
    assert len(engine.catalog.models[0].labels) == CLASSES
