"""Models from every source run under every compiler, and as an export, as TensorFlow runs them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import NO_CLASS, GraphItem, GraphKey, GraphTarget
from gradcam_server.domain.layers import default_layer
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.engine.engine import Engine
from gradcam_server.engine.sources.model import ModelSource
from gradcam_server.exports.writer import SAVED_MODEL, SIGNATURE, write
from gradcam_server.graphs.compilers.autotune import compile_graph
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.models import applications
from gradcam_server.models.applications import APPLICATIONS
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.loading import load

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")

SIZE, CLASSES, BUILT_IN = 48, 5, "mobilenetv2"
TARGETS = (1, 3)
IMAGES = np.random.default_rng(2).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)


def body(normalized: bool) -> keras.Model:
    """Builds the layers from an image to the explained activation."""
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 255)(image)
    for number in range(2):
        x = layers.Conv2D(4, 3, strides=2, name=f"conv{number}")(x)
        if normalized:
            x = layers.BatchNormalization(name=f"normal{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
    return keras.Model(image, x, name="body")


def build(kind: str) -> tuple[keras.Model, keras.Model]:
    """Returns a model, and its part up to the explained activation."""
    keras.utils.set_random_seed(5)
    inner = body(normalized=kind != "plain")
    image = keras.Input((SIZE, SIZE, 3)) if kind == "nested" else inner.input
    x = inner(image) if kind == "nested" else inner.output
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, layers.Dense(CLASSES, "softmax", name="head")(x))
    random = np.random.default_rng(6)
    model.set_weights(
        [random.uniform(0.2, 0.8, w.shape) - 0.3 * (w.ndim > 1) for w in model.get_weights()]
    )
    return model, inner


def save_with_tensorflow(model: keras.Model, path: Path) -> None:
    module = tf.Module()
    module.model = model
    module.serve = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32)],
    )
    tf.saved_model.save(module, str(path), signatures=module.serve)


WRITERS: dict[str, Callable[[keras.Model, Path], None]] = {
    "m.keras": lambda model, path: model.save(path),
    "m.h5": lambda model, path: model.save(path),
    "saved": save_with_tensorflow,
    "exported": partial(keras.Model.export, verbose=False),
}


@dataclass(frozen=True)
class Expected:
    """The answers to ``IMAGES``, computed eagerly by TensorFlow from the Keras model."""

    logits: np.ndarray
    maps: np.ndarray


def explain(model: keras.Model, inner: keras.Model, images: np.ndarray) -> Expected:
    """Grad-CAM before its ReLU by the paper's formula: the sum of A weighted by mean gradients."""
    head = model.layers[-1]
    maps = []
    for target in TARGETS:
        with tf.GradientTape() as tape:
            activation = inner(images, training=False)
            tape.watch(activation)
            logits = tf.reduce_mean(activation, [1, 2]) @ head.kernel + head.bias
            score = tf.reduce_sum(logits[:, target])
        weights = np.mean(tape.gradient(score, activation), axis=(1, 2))
        maps.append(np.einsum("bk,bhwk->bhw", weights, activation))
    return Expected(np.asarray(logits), np.stack(maps, axis=1))


@dataclass(frozen=True)
class Case:
    """A model, its source, and its expected answers."""

    spec: ModelSpec
    expected: Expected

    @cached_property
    def loaded(self) -> LoadedModel:
        return load(self.spec)


@pytest.fixture(scope="module")
def find_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Case]:
    """Writes each model once."""

    @cache
    def find(source: str, kind: str) -> Case:
        if source == BUILT_IN:
            model, _ = applications.build(BUILT_IN, "random", 0)
            inner = keras.Model(model.input, model.get_layer("out_relu").output)
            scaled = IMAGES.astype(np.float32) / 127.5 - 1
            spec = ModelSpec(BUILT_IN, BUILT_IN, weights="random")
            return Case(spec, explain(model, inner, scaled))
        model, inner = build(kind)
        path = tmp_path_factory.mktemp("model") / source
        WRITERS[source](model, path)
        return Case(ModelSpec("mine", str(path)), explain(model, inner, IMAGES.astype(np.float32)))

    return find


@pytest.fixture(autouse=True)
def _tiny_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in model for small images, with few channels."""
    application = APPLICATIONS[BUILT_IN]
    small = partial(application.build, input_shape=(SIZE, SIZE, 3), alpha=0.35)
    monkeypatch.setitem(APPLICATIONS, BUILT_IN, application._replace(build=small))


# All kinds in one form of each loader, .keras and SavedModel; the other forms differ from these in
# how weights are read, of which the nested model has all kinds.
CASES = [
    (BUILT_IN, "built-in"),
    *((source, kind) for source in ("m.keras", "saved") for kind in ("plain", "normalized")),
    *((source, "nested") for source in WRITERS),
]


def assert_alike(graph: CompiledGraph, expected: Expected) -> None:
    targets = [GraphTarget(target) for target in TARGETS]
    outputs = graph.run([GraphItem(image, targets) for image in IMAGES], len(IMAGES))
    for output, logits, maps in zip(outputs, expected.logits, expected.maps, strict=True):
        close = {"rtol": 1e-4, "atol": 1e-4 * np.abs(logits).max()}
        np.testing.assert_allclose(output.logits, logits, **close)
        np.testing.assert_allclose(output.probabilities, tf.nn.softmax(logits), rtol=1e-4)
        scale = np.abs(maps).max()
        np.testing.assert_allclose(output.maps[0], maps, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("compiler", [Compiler.TENSORFLOW, Compiler.XLA, Compiler.OPENVINO])
@pytest.mark.parametrize(("source", "kind"), CASES)
def test_every_compiler_runs_every_source(
    find_case: Callable[[str, str], Case], source: str, kind: str, compiler: Compiler
) -> None:
    """No other compiler replaces it; logits, probabilities and maps are TensorFlow's."""
    case = find_case(source, kind)
    loaded = case.loaded
    layer = default_layer(loaded.network.layers)
    key = GraphKey("mine", (layer,), Method.GRAD_CAM, ScoreType.LOGIT, len(TARGETS))
    graph = ExplanationGraph(loaded, key, CompilationCounter())
    compiled = compile_graph(graph, (len(IMAGES),), compiler)
    assert compiled.compiler is compiler
    assert_alike(compiled, case.expected)


@pytest.mark.parametrize(
    ("source", "kind"),
    [(BUILT_IN, "built-in"), ("exported", "plain"), *((source, "nested") for source in WRITERS)],
)
def test_every_source_can_be_exported(
    find_case: Callable[[str, str], Case], source: str, kind: str, tmp_path: Path
) -> None:
    """OpenVINO's model and the SavedModel of an export answer as TensorFlow does."""
    case = find_case(source, kind)
    name = case.spec.name
    engine = Engine(
        ServeConfig(
            model=(name if source == BUILT_IN else f"{name}={case.spec.source}",),
            weights=(case.spec.weights,) if source == BUILT_IN else (),
            batch_sizes=(len(IMAGES),),
            max_targets=len(TARGETS),
        )
    )
    opened = engine.sources[name]
    assert isinstance(opened, ModelSource)
    key = engine.warm_keys()[0]
    write(opened.loaded, opened.served, [key], (len(IMAGES),), tmp_path / "export")
    served = Engine(ServeConfig(model=(f"{name}={tmp_path / 'export'}",), max_targets=len(TARGETS)))
    assert_alike(served.sources[name].compile(key, (len(IMAGES),)), case.expected)
    signature = tf.saved_model.load(str(tmp_path / "export" / SAVED_MODEL)).signatures[SIGNATURE]
    classes = np.tile(np.array(TARGETS, np.int32), (len(IMAGES), 1))
    found = signature(
        images=tf.constant(IMAGES),
        classes=tf.constant(classes),
        against=tf.constant(np.full_like(classes, NO_CLASS)),
    )
    np.testing.assert_allclose(found["logits"], case.expected.logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_frozen_runs_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A SavedModel that looks up a table is served by TensorFlow, with the reason in the log."""
    model, _ = build("plain")
    module = tf.Module()
    module.model = model
    scales = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1]), tf.constant([1.0, 2.0]))
    module.table = tf.lookup.StaticHashTable(scales, 0.0)

    def serve(images: tf.Tensor) -> tf.Tensor:
        scale = tf.reshape(module.table.lookup(tf.constant(1)), ())
        return model(images * scale, training=False)

    module.serve = tf.function(
        serve,
        input_signature=[tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32)],
    )
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    loaded = load(ModelSpec("mine", str(tmp_path)))
    layer = default_layer(loaded.network.layers)
    key = GraphKey("mine", (layer,), Method.GRAD_CAM, ScoreType.LOGIT, 1)
    graph = ExplanationGraph(loaded, key, CompilationCounter())
    compiled = compile_graph(graph, (2,), Compiler.OPENVINO)
    assert compiled.compiler is Compiler.TENSORFLOW
    assert "cannot be made constants, such as tables" in caplog.text
    output = compiled.run([GraphItem(image) for image in IMAGES], 2)
    expected = model(2 * IMAGES.astype(np.float32), training=False)
    np.testing.assert_allclose([one.probabilities for one in output], expected, rtol=1e-4)
