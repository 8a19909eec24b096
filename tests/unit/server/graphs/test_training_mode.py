"""Models that run in training mode are refused; the error names the operation."""

from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.engine.engine import Engine
from gradcam_server.engine.sources.model import ModelSource
from gradcam_server.errors import StartupError
from gradcam_server.exports.writer import write

SIZE = 16


@keras.saving.register_keras_serializable("training_mode")
class AlwaysDropout(layers.Layer):
    """A dropout layer that ignores ``training``."""

    def call(self, inputs: Any) -> Any:
        return tf.nn.dropout(inputs, 0.5)


@keras.saving.register_keras_serializable("training_mode")
class OfItsBatch(layers.Layer):
    """A layer that normalises by the statistics of its batch, whatever ``training`` is."""

    def call(self, inputs: Any) -> Any:
        return inputs - keras.ops.mean(inputs, axis=(0, 1, 2), keepdims=True)


@keras.saving.register_keras_serializable("training_mode")
class OfItsImage(layers.Layer):
    """A layer that normalises each image by its own statistics, by an operation for batches."""

    def call(self, inputs: Any) -> Any:
        _, height, width, channels = inputs.shape
        turned = keras.ops.reshape(
            keras.ops.transpose(inputs, (1, 2, 0, 3)), (1, height, width, -1)
        )
        count = keras.ops.shape(turned)[-1]
        ones, zeros = keras.ops.ones((count,)), keras.ops.zeros((count,))
        normal, *_ = tf.compat.v1.nn.fused_batch_norm(turned, ones, zeros, is_training=True)
        shape = (height, width, -1, channels)
        return keras.ops.transpose(keras.ops.reshape(normal, shape), (2, 0, 1, 3))


def build(*more: layers.Layer) -> keras.Model:
    """A small model with layers before its pooling."""
    keras.utils.set_random_seed(4)
    first = [keras.Input((SIZE, SIZE, 3)), layers.Rescaling(1 / 64), layers.Conv2D(8, 3)]
    last = [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(4, "softmax")]
    return keras.Sequential([*first, *more, *last])


def save_in_training_mode(model: keras.Model, path: Path) -> None:
    """Saves a serving function that calls the model with ``training=True``."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    images = tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32)
    archive.add_endpoint("serve", lambda images: model(images, training=True), [images])
    archive.write_out(path, verbose=False)


def save(model: keras.Model, path: Path) -> None:
    model.save(path)


def open_engine(path: Path, **more: Any) -> Engine:
    settings = {"batch_sizes": (1, 2), "compiler": Compiler.TENSORFLOW, "max_targets": 1, **more}
    return Engine(ServeConfig(model=(f"mine={path}",), **settings))


@pytest.fixture(scope="module", params=["dropout", "noise", "normal", "custom dropout", "custom"])
def training(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A model in training mode, and the expected text of the refusal."""
    write_model, layer, text = {
        "dropout": (save_in_training_mode, layers.Dropout(0.3), r"dropout.*Random.*again"),
        "noise": (save_in_training_mode, layers.GaussianNoise(0.1), r"noise.*Random.*again"),
        "normal": (
            save_in_training_mode,
            layers.BatchNormalization(name="normal"),
            r"normal.*\((Mean|FusedBatchNormV3)\).*in a batch with other images",
        ),
        "custom dropout": (save, AlwaysDropout(name="mine"), r"at mine \(Random.*again"),
        "custom": (save, OfItsBatch(name="mine"), r"at mine \(Mean\).*with other images"),
    }[request.param]
    name = "m.keras" if write_model is save else "saved"
    path = tmp_path_factory.mktemp("model") / name
    write_model(build(layer), path)
    return path, text


@pytest.mark.parametrize("compiler", [Compiler.TENSORFLOW, Compiler.XLA, Compiler.OPENVINO])
def test_models_in_training_mode_are_refused(
    training: tuple[Path, str], compiler: Compiler
) -> None:
    """At warm-up, with any compiler; the error names the operation and the remedy."""
    path, text = training
    with pytest.raises(StartupError, match=rf"^mine runs in training mode.*{text}") as refusal:
        open_engine(path, compiler=compiler).warm_up()
    assert "training=False" in str(refusal.value)


@pytest.mark.parametrize("training", ["dropout", "custom"], indirect=True)
def test_models_in_training_mode_are_not_exported(
    training: tuple[Path, str], tmp_path: Path
) -> None:
    """They are refused as for serving, and nothing is written."""
    path, text = training
    engine = open_engine(path)
    source = engine.sources["mine"]
    assert isinstance(source, ModelSource)
    with pytest.raises(StartupError, match=rf"^mine runs in training mode.*{text}"):
        write(source.loaded, source.served, engine.warm_keys(), (1,), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
@pytest.mark.parametrize(
    "make",
    [
        partial(layers.Dropout, 0.5),
        partial(layers.GaussianNoise, 0.5),
        partial(layers.BatchNormalization),
        partial(layers.GroupNormalization, 2),
        partial(OfItsImage),
    ],
    ids=lambda make: make.func.__name__,
)
def test_layers_in_inference_mode_are_served(
    make: partial[layers.Layer], precision: Precision, tmp_path: Path
) -> None:
    """Neither rounding, in any precision, nor operations on each image alone are refused."""
    build(make()).save(tmp_path / "m.keras")
    engine = open_engine(tmp_path / "m.keras", precision=precision, batch_sizes=(1, 4))
    engine.warm_up()
    assert engine.catalog.models[0].compiler == Compiler.TENSORFLOW


def test_a_saved_model_in_inference_mode_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same layers that are refused in training mode, without a warning."""
    model = build(layers.Dropout(0.3), layers.BatchNormalization(), layers.GaussianNoise(0.1))
    model.export(tmp_path / "saved", verbose=False)
    for sizes in ((1, 2), (1,)):
        open_engine(tmp_path / "saved", batch_sizes=sizes).warm_up()
    assert "training mode" not in caplog.text


@pytest.mark.parametrize("sizes", [(1,), (3,), (2, 4)])
def test_any_batch_sizes_will_do(
    sizes: tuple[int, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Random layers are refused at any; at batch size 1 statistics of the batch are warned of."""
    build(AlwaysDropout()).save(tmp_path / "random.keras")
    with pytest.raises(StartupError, match="training mode"):
        open_engine(tmp_path / "random.keras", batch_sizes=sizes).warm_up()
    build(OfItsBatch(name="mine")).save(tmp_path / "batch.keras")
    engine = open_engine(tmp_path / "batch.keras", batch_sizes=sizes)
    if sizes == (1,):
        engine.warm_up()
        assert "may run in training mode at mine (Mean)" in caplog.text
    else:
        with pytest.raises(StartupError, match="training mode"):
            engine.warm_up()


def test_models_without_a_finite_logit_are_not_refused_for_it(tmp_path: Path) -> None:
    """NaN counts as the same answer each time."""
    model = build()
    model.layers[-1].kernel.assign(np.full(model.layers[-1].kernel.shape, np.nan, np.float32))
    model.save(tmp_path / "m.keras")
    open_engine(tmp_path / "m.keras").warm_up()
