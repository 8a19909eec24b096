"""Models from files: .keras, .h5 and SavedModels, their labels and their own classes."""

import json
import logging
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gradcam_server.domain.layers import default_layer
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import InvalidRequestError, StartupError
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.loading import load
from gradcam_server.models.network import OutputActivation

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")

SHAPE = (12, 10, 3)
IMAGES = tf.constant(np.random.default_rng(2).normal(size=(2, *SHAPE)).astype(np.float32))


def transfer(shape: tuple[int | None, ...] = SHAPE, classes: int = 3) -> keras.Model:
    keras.utils.set_random_seed(1)
    base = keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="normal"),
            layers.ReLU(name="relu"),
        ],
        name="base",
    )
    head = [layers.GlobalAveragePooling2D(), layers.Dense(classes, "softmax", name="predictions")]
    return keras.Sequential([base, layers.Dropout(0.2), *head], name="transfer")


def load_file(path: Path, **options: Any) -> LoadedModel:
    return load(ModelSpec("mine", str(path), **options))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A SavedModel, and its probabilities."""
    model, path = transfer(), tmp_path_factory.mktemp("exported") / "saved"
    model.export(path, verbose=False)
    return path, model(IMAGES, training=False).numpy()


def explain(model: LoadedModel, layer: str, xla: bool) -> list[np.ndarray]:
    def run(images: tf.Tensor) -> tuple[tf.Tensor, ...]:
        (activation,), logits = model.network.compute(images, [layer])
        return logits, activation, tf.gradients(tf.reduce_sum(logits[:, 1]), activation)[0]

    return [tensor.numpy() for tensor in tf.function(run, jit_compile=xla, autograph=False)(IMAGES)]


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_files_that_keras_wrote_can_be_served(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the weights of the file; the preprocessing is logged, since nothing can check it."""
    model = transfer()
    model.save(tmp_path / name)
    with caplog.at_level(logging.INFO):
        loaded = load_file(tmp_path / name)
    assert "images of 12x10, preprocessing none (by default" in caplog.text
    assert (loaded.name, loaded.weights) == ("mine", f"file {name}")
    assert (loaded.input_size, loaded.random_weights) == ((12, 10), False)
    assert "base/relu" in [layer.name for layer in loaded.network.layers]
    _, logits = loaded.network.compute(IMAGES, [])
    np.testing.assert_allclose(tf.nn.softmax(logits), model(IMAGES, training=False), rtol=1e-4)


def test_options_of_a_file_are_kept(tmp_path: Path) -> None:
    """Size, preprocessing and labels are the declared ones."""
    transfer((None, None, 3)).save(tmp_path / "m.keras")
    (tmp_path / "names.txt").write_text("cat\ndog\nfox\n")
    loaded = load_file(
        tmp_path / "m.keras",
        preprocessing=Preprocessing.TF,
        labels=tmp_path / "names.txt",
        input_size=(20, 30),
    )
    assert loaded.input_size == (20, 30)
    assert loaded.preprocessing is Preprocessing.TF
    assert loaded.labels.index("fox") == 2


@pytest.mark.parametrize("xla", [False, True], ids=["tensorflow", "xla"])
def test_saved_models_are_explained_as_their_originals(
    exported: tuple[Path, np.ndarray], tmp_path: Path, xla: bool
) -> None:
    """Logits, activations and gradients are those of the .keras file of the same model."""
    transfer().save(tmp_path / "m.keras")
    original, loaded = load_file(tmp_path / "m.keras"), load_file(exported[0])
    assert loaded.network.output_activation is OutputActivation.SOFTMAX
    assert (loaded.input_size, loaded.network.class_count) == ((12, 10), 3)
    last = default_layer(loaded.network.layers)
    assert last == "relu/Relu" or last.endswith("/Relu")
    expected = explain(original, "base/relu", xla)
    for ours, theirs in zip(explain(loaded, last, xla), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        tf.nn.softmax(loaded.network.compute(IMAGES, [])[1]), exported[1], rtol=1e-4
    )


def swishing() -> keras.Model:
    image = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, activation="swish")(layers.Conv2D(4, 3, name="conv")(image))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 1, activation="silu")(x))
    return keras.Model(image, layers.Dense(3, "softmax")(x))


@pytest.mark.parametrize("xla", [False, True], ids=["tensorflow", "xla"])
def test_saved_models_are_explained_below_swish(
    tmp_path: Path, xla: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorFlow's swish has a custom gradient, which equals its operations' and is dropped."""
    model = swishing()
    model.save(tmp_path / "m.keras")
    model.export(tmp_path / "saved", verbose=False)
    loaded = load_file(tmp_path / "saved")
    (layer,) = (one.name for one in loaded.network.layers if one.name.endswith("conv_1/BiasAdd"))
    expected = explain(load_file(tmp_path / "m.keras"), "conv", xla)
    for ours, theirs in zip(explain(loaded, layer, xla), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert "custom gradients" not in caplog.text


class AsKeras2(tf.Module):
    """A model as Keras 2 saves it: nested functions, a named input, and swish."""

    def __init__(self, branch: Callable[[tf.Tensor], tf.Tensor]) -> None:
        super().__init__()
        random = np.random.default_rng(4).normal
        self.branch = branch
        self.kernel = tf.Variable(random(size=(3, 3, 3, 4)).astype(np.float32))
        self.dense = tf.Variable(random(size=(4, 3)).astype(np.float32))
        self.call = tf.function(lambda x: tf.nn.softmax(self.head(self.convolve(x))))
        self.serving_default = tf.function(
            lambda x: {"dense": self.call(x)},
            input_signature=[tf.TensorSpec((None, *SHAPE), tf.float32, "input_1")],
        )

    def convolve(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(x, self.kernel, 1, "SAME", name="conv")

    def head(self, x: tf.Tensor) -> tf.Tensor:
        pooled = tf.reduce_mean(tf.nn.swish(x) - tf.nn.relu(self.branch(x)), [1, 2])
        return pooled @ self.dense


REVERSED = tf.custom_gradient(lambda x: (tf.identity(x), lambda gradient: -gradient))


@pytest.mark.parametrize("custom", [False, True], ids=["swish", "custom"])
def test_saved_models_as_of_keras_2(
    custom: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Explained by the derivatives of their operations; other custom gradients are warned of."""
    module = AsKeras2(REVERSED if custom else tf.identity)
    tf.saved_model.save(module, str(tmp_path), signatures=module.serving_default)
    loaded = load_file(tmp_path)
    (layer,) = (one.name for one in loaded.network.layers if one.type == "Conv2D")
    logits, activation, gradient = explain(loaded, layer, xla=False)
    plain = AsKeras2(tf.identity)
    with tf.GradientTape() as tape:
        seen = plain.convolve(IMAGES)
        tape.watch(seen)
        expected = plain.head(seen)
        score = tf.reduce_sum(expected[:, 1])
    np.testing.assert_allclose(activation, seen, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, tape.gradient(score, seen), rtol=1e-4, atol=1e-6)
    assert ("custom gradients, which are ignored" in caplog.text) == custom


@pytest.mark.filterwarnings("ignore")
def test_saved_models_that_keras_2_wrote(tmp_path: Path) -> None:
    """Where tf-keras is installed (it needs tensorflow itself, not tensorflow-cpu)."""
    keras2 = pytest.importorskip("tf_keras", reason="tf-keras is not installed")
    base = keras2.Sequential([keras2.layers.Conv2D(4, 3, name="conv", input_shape=SHAPE)])
    head = [keras2.layers.Activation("swish"), keras2.layers.GlobalAveragePooling2D()]
    last = [keras2.layers.Dropout(0.2), keras2.layers.Dense(3, "softmax")]
    model = keras2.Sequential([base, *head, *last])
    model.save(tmp_path / "saved", save_format="tf")
    model.export(tmp_path / "exported")
    last[1].activation = keras2.activations.linear
    with tf.GradientTape() as tape:
        seen = base(IMAGES, training=False)
        tape.watch(seen)
        logits = seen
        for layer in (*head, *last):
            logits = layer(logits, training=False)
        score = tf.reduce_sum(logits[:, 1])
    expected = logits, seen, tape.gradient(score, seen)
    for name in ("saved", "exported"):
        loaded = load_file(tmp_path / name)
        (layer,) = (one.name for one in loaded.network.layers if one.type == "BiasAdd")
        found = explain(loaded, layer, xla=False)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_layers_of_saved_models_are_operations_on_the_images(
    exported: tuple[Path, np.ndarray],
) -> None:
    """Neither weights nor constants; each with its shape."""
    loaded = load_file(exported[0])
    described = loaded.network.layers
    assert [layer.type for layer in described if layer.type in {"Conv2D", "Relu"}] == [
        "Conv2D",
        "Relu",
    ]
    assert {layer.output_shape for layer in described} == {(None, 10, 8, 4)}
    assert not any("PartitionedCall" in layer.name for layer in described)
    outputs, _ = loaded.network.compute(IMAGES, [layer.name for layer in described])
    assert {tuple(output.shape) for output in outputs} == {(2, 10, 8, 4)}


def test_saved_models_of_open_size_and_sigmoid(tmp_path: Path) -> None:
    """The size is chosen, and the sigmoid found."""
    image = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    keras.Model(image, layers.Dense(2, "sigmoid")(x)).export(tmp_path / "saved", verbose=False)
    loaded = load_file(tmp_path / "saved", input_size=(12, 10))
    assert loaded.input_size == (12, 10)
    assert loaded.network.output_activation is OutputActivation.SIGMOID
    assert load_file(tmp_path / "saved").input_size == (224, 224)


def test_saved_models_that_do_not_fit_are_refused(
    exported: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """No signature, another input or output, another size."""
    with pytest.raises(StartupError, match="takes images of 12x10"):
        load_file(exported[0], input_size=(32, 32))
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    with pytest.raises(StartupError, match="no signature 'serving_default'"):
        load_file(tmp_path / "empty")
    flat = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    flat.export(tmp_path / "flat", verbose=False)
    with pytest.raises(StartupError, match=r"input must be .* and is \(None, 4\)"):
        load_file(tmp_path / "flat")
    maps = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(2, 1)])
    maps.export(tmp_path / "maps", verbose=False)
    with pytest.raises(StartupError, match=r"output must be \(batch, classes\)"):
        load_file(tmp_path / "maps")


MODULE = """
import keras

@keras.saving.register_keras_serializable("{package}")
class Twice(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2
"""


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_modules_bring_custom_layers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the module the error says how to name one; with it the model is served."""
    module = f"custom_{name.replace('.', '_')}"
    (tmp_path / f"{module}.py").write_text(MODULE.format(package=module))
    monkeypatch.syspath_prepend(tmp_path)
    registered = keras.saving.get_custom_objects()
    before = dict(registered)
    twice = __import__(module).Twice
    keras.Sequential(
        [keras.Input(SHAPE), twice(name="twice"), layers.Conv2D(4, 1), *transfer().layers[2:]]
    ).save(tmp_path / name)
    registered.clear()
    registered.update(before)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(StartupError, match=r"(?s)Twice.*register_keras.*--custom-objects MODULE"):
        load_file(tmp_path / name)
    loaded = load_file(tmp_path / name, custom_objects=(module,))
    assert "twice" in [layer.name for layer in loaded.network.layers]


def test_modules_that_cannot_be_imported_are_named(tmp_path: Path) -> None:
    """The error has the reason."""
    transfer().save(tmp_path / "m.keras")
    with pytest.raises(StartupError, match=r"--custom-objects no_such_one: .*No module named"):
        load_file(tmp_path / "m.keras", custom_objects=("no_such_one",))


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_lambda_layers_are_refused(name: str, tmp_path: Path) -> None:
    """A file must not bring Python code along."""
    keras.Sequential([keras.Input(SHAPE), layers.Lambda(lambda x: x * 2), layers.Flatten()]).save(
        tmp_path / name
    )
    with pytest.raises(StartupError, match="contains a Lambda layer"):
        load_file(tmp_path / name)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    """The error names the file."""
    for name in ("m.keras", "m.h5", "m.tflite"):
        (tmp_path / name).write_text("this is no model")
        with pytest.raises(StartupError, match=f"cannot load .*{name}"):
            load_file(tmp_path / name)
    transfer().save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(StartupError, match="contains weights without a model"):
        load_file(tmp_path / "w.weights.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StartupError, match=r"no SavedModel: it has no saved_model\.pb"):
        load_file(tmp_path / "folder")
    with pytest.raises(StartupError, match="does not exist"):
        load_file(tmp_path / "absent.keras")
    transfer().save(tmp_path / "good.keras")
    with pytest.raises(StartupError, match="has its own weights"):
        load_file(tmp_path / "good.keras", weights="random")


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_files_of_keras_2_that_cannot_be_read_name_the_way_out(name: str, tmp_path: Path) -> None:
    """Keras 3 refuses some configurations of Keras 2; a SavedModel has none."""
    path = tmp_path / name
    transfer().save(path)
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["keras_version"] = "2.15.0"
            config = file.attrs["model_config"].replace('"filters"', '"filter_count"')
            file.attrs["model_config"] = config
    else:
        with zipfile.ZipFile(path) as file:
            content = {one: file.read(one) for one in file.namelist()}
        content["metadata.json"] = b'{"keras_version": "2.15.0"}'
        content["config.json"] = content["config.json"].replace(b'"filters"', b'"filter_count"')
        with zipfile.ZipFile(path, "w") as file:
            for one, data in content.items():
                file.writestr(one, data)
    with pytest.raises(StartupError, match=r"written by Keras 2\.15\.0, .*model\.save\(FOLDER\)"):
        load_file(path)


@pytest.mark.parametrize("size", [1, 4])
def test_saved_models_of_a_fixed_batch_size_are_refused(size: int, tmp_path: Path) -> None:
    """Batches come in several sizes; the error says how to export it otherwise."""
    module = tf.Module()
    module.model = model = transfer()
    module.serve = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec((size, *SHAPE), tf.float32)],
    )
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.serve)
    with pytest.raises(StartupError, match=rf"size is fixed at {size}, .*without batch_size"):
        load_file(tmp_path / "saved")


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "exported"])
def test_models_whose_input_fixes_the_batch_size_are_served_at_any(
    name: str, tmp_path: Path
) -> None:
    """Keras calls their layers with any batch size, and exports them with an open one."""
    inner = transfer()
    image = keras.Input(SHAPE, batch_size=1)
    model = keras.Model(image, inner(image))
    if name == "exported":
        model.export(tmp_path / name, verbose=False)
    else:
        model.save(tmp_path / name)
    _, logits = load_file(tmp_path / name).network.compute(IMAGES, [])
    np.testing.assert_allclose(tf.nn.softmax(logits), inner(IMAGES, training=False), rtol=1e-4)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_layer_that_calls_a_saved_model_names_the_way_out(name: str, tmp_path: Path) -> None:
    """The folder that it calls can be served; safe mode cannot be left."""
    transfer().export(tmp_path / "saved", verbose=False)
    inner = layers.TFSMLayer(str(tmp_path / "saved"), call_endpoint="serving_default")
    keras.Sequential([keras.Input(SHAPE), inner]).save(tmp_path / name)
    with pytest.raises(StartupError, match="serve the SavedModel's folder itself") as refusal:
        load_file(tmp_path / name)
    assert "safe_mode" not in str(refusal.value)


def change_config(path: Path, change: Callable[[str], str]) -> None:
    """Changes the configuration in a .keras file."""
    with zipfile.ZipFile(path) as file:
        content = {one: file.read(one) for one in file.namelist()}
    content["config.json"] = change(content["config.json"].decode()).encode()
    with zipfile.ZipFile(path, "w") as file:
        for one, data in content.items():
            file.writestr(one, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"filters"', '"filter_count"'), "'filters'"),
        (lambda text: text.replace('"Conv2D"', '"Conv9D"'), "Conv9D"),
        (lambda text: text.replace('"strides": [1, 1]', '"strides": [0, 1]'), "strides"),
    ],
    ids=["argument", "class", "value"],
)
def test_errors_of_keras_are_cut(
    change: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    """Keras puts the whole configuration before the cause; the error has the cause alone."""
    convolutions = [layers.Conv2D(4, 1, name=f"conv{number}") for number in range(100)]
    keras.Sequential([keras.Input(SHAPE), *convolutions, *transfer().layers[2:]]).save(
        tmp_path / "m.keras"
    )
    change_config(tmp_path / "m.keras", change)
    with pytest.raises(StartupError, match=message) as refusal:
        load_file(tmp_path / "m.keras")
    assert len(str(refusal.value)) < 1000


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.keras"
    transfer().save(path)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "cat\n\nbig dog"),
        ("names.txt", "\ufeffcat\r\n\r\nbig dog\r\n\r\n\r\n"),
        ("names.json", json.dumps(["cat", "", "big dog"])),
        ("names.json", json.dumps(["cat", None, "big dog"])),
    ],
)
def test_labels_are_lines_or_a_json_list(
    three_classes: Path, tmp_path: Path, name: str, content: str
) -> None:
    """A class may have no name, and then goes by its index."""
    (tmp_path / name).write_text(content, "utf-8")
    labels = load_file(three_classes, labels=tmp_path / name).labels
    assert [label.name for label in labels.labels] == ["cat", "", "big dog"]
    assert (labels.index("Big_Dog"), labels.index(1)) == (2, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names.txt", b"cat\ndog\n", "it names 2 classes, and the model has 3"),
        ("names.txt", b"a\nb\nc\nd\n", "it names 4 classes, and the model has 3"),
        ("names.txt", b"caf\xe9\nb\nc\n", "cannot be read as UTF-8"),
        ("names.json", b"[", "it is not JSON"),
        ("names.json", b'{"cat": 0}', "must be a JSON list of names"),
        ("names.json", b"[1, 2, 3]", "must be a JSON list of names"),
        ("names.json", b'["a", "b"]', "it names 2 classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    three_classes: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """A wrong number of names is an error."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StartupError, match=f"--labels .*{name}: .*{message}"):
        load_file(three_classes, labels=tmp_path / name)
    with pytest.raises(StartupError, match=r"--labels absent\.txt: it cannot be read"):
        load_file(three_classes, labels=Path("absent.txt"))


def test_without_labels_classes_have_no_names(tmp_path: Path) -> None:
    """A thousand classes are not taken for ImageNet's."""
    transfer(classes=1000).save(tmp_path / "m.keras")
    unnamed = load_file(tmp_path / "m.keras").labels
    assert {label.name for label in unnamed.labels} == {""}
    assert unnamed.index(999) == 999
    with pytest.raises(InvalidRequestError, match="unknown class 'tench'"):
        unnamed.index("tench")
    named = load_file(tmp_path / "m.keras", labels=Path("imagenet")).labels
    assert named.index("tench") == 0
