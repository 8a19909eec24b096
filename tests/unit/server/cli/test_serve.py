"""``gradcam serve --check``: compiles as for serving, or refuses like it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result
from keras import layers

from gradcam_server.cli.serve import serve
from support.small_model import CLASSES, build_network


@keras.saving.register_keras_serializable("check")
class Noise(layers.Layer):
    """A layer that adds different noise in each call."""

    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.normal(tf.shape(inputs))


@keras.saving.register_keras_serializable("check")
class OfTwo(layers.Layer):
    """A layer that computes only batches of two images."""

    def call(self, inputs: Any) -> Any:
        return tf.ensure_shape(tf.reshape(tf.reshape(inputs, (2, 8)), tf.shape(inputs)), (None, 8))


def ending_in(layer: layers.Layer) -> keras.Model:
    first = [keras.Input((16, 16, 3)), layers.Conv2D(8, 3), layers.GlobalAveragePooling2D()]
    return keras.Sequential([*first, layer, layers.Dense(3, "softmax")])


def check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: keras.Model, *arguments: str
) -> Result:
    """Runs the command in this process, without a log."""
    monkeypatch.setattr("gradcam_server.telemetry.logs.configure", lambda *_: None)
    model.save(tmp_path / "m.keras")
    options = ["--compiler", "tensorflow", "--batch-sizes", "1,4", "--max-targets", "1"]
    return CliRunner().invoke(
        serve, ["--check", "--model", f"mine={tmp_path / 'm.keras'}", *options, *arguments]
    )


def test_what_would_be_served_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each graph is named with its compiler and the time of each batch size."""
    result = check(monkeypatch, tmp_path, build_network(), "--warm", "layercam@conv2")
    assert result.exit_code == 0, result.output
    title, *graphs = result.output.splitlines()
    assert title == f"mine: file m.keras, {CLASSES} classes, ready to be served"
    for graph, name in zip(graphs, ("gradcam of .* block", "layercam of .* conv2"), strict=True):
        times = r"milliseconds by batch size: 1: \d+\.\d, 4: \d+\.\d"
        assert re.fullmatch(rf"  mine, {name}, by tensorflow; {times}", graph)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (build_network, ("--warm", "layercam@nowhere"), "no layer 'nowhere'"),
        (lambda: ending_in(Noise()), (), "mine runs in training mode"),
        (lambda: ending_in(OfTwo()), (), r"cannot be compiled in float32 \(tensorflow: .*reshape"),
    ],
    ids=["layer", "training mode", "batch size"],
)
def test_what_serving_would_refuse_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    build: Callable[[], keras.Model],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    """The exit status is 1, with the reason and without a traceback."""
    result = check(monkeypatch, tmp_path, build(), *arguments)
    assert result.exit_code == 1
    assert re.search(f"^Error: .*{message}", result.output, re.MULTILINE)
    assert "ready" not in result.output
