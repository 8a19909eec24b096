"""The reported probabilities are the model's own, whatever its last layers."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from numpy.typing import NDArray

from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Outputs
from gradcam_server.errors import StartupError
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.loading import load
from gradcam_server.models.network import PROBABILITIES, Network, OutputActivation
from gradcam_server.models.saved_model_network import SavedModelNetwork

SIZE = 8
CLASSES = 3
RANDOM = keras.initializers.RandomNormal(stddev=0.5)
# From dark to bright.
IMAGES = np.random.default_rng(2).uniform(0, 255, (5, SIZE, SIZE, 3)).astype(np.float32)
IMAGES *= np.linspace(0.1, 1, len(IMAGES), dtype=np.float32)[:, None, None, None]


@keras.saving.register_keras_serializable("ending")
def sharpened(logits: Any) -> Any:
    """A softmax with a temperature of one half."""
    return tf.nn.softmax(2 * logits)


@keras.saving.register_keras_serializable("ending")
def renamed(logits: Any) -> Any:
    """A softmax by another name."""
    exponential = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    return exponential / ops.sum(exponential, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable("ending")
class Doubled(layers.Dense):
    """A layer that doubles its activation, which therefore must not be removed."""

    def call(self, inputs: Any) -> Any:
        return 2 * super().call(inputs)


def dense(features: Any, activation: Any = None, classes: int = CLASSES) -> Any:
    return layers.Dense(classes, activation, kernel_initializer=RANDOM)(features)


def mean(activation: str, classes: int = CLASSES) -> Callable[[Any], Any]:
    return lambda x: layers.Average()([dense(x, activation, classes) for _ in range(2)])


def experts(x: Any) -> Any:
    gate = dense(x, "softmax", 2)
    return gate[:, :1] * dense(x, "softmax") + gate[:, 1:] * dense(x, "softmax")


def calibrated(x: Any) -> Any:
    powers = dense(x, "softmax") ** 0.7
    return powers / ops.sum(powers, axis=-1, keepdims=True)


def both(x: Any) -> Any:
    positive = dense(x, "sigmoid", 1)
    return layers.Concatenate()([1 - positive, positive])


DISTRIBUTIONS: dict[str, Callable[[Any], Any]] = {
    "mean of softmaxes": mean("softmax"),
    "temperature in the activation": lambda x: dense(x, sharpened),
    "mixture of experts": experts,
    "calibrated": calibrated,
    "both sides of a sigmoid": both,
    "smoothed": lambda x: layers.Rescaling(0.5, 0.5 / CLASSES)(dense(x, "softmax")),
}
SOFTMAXES: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda x: dense(x, "softmax"),
    "softmax, scaled by one": lambda x: layers.Rescaling(1.0)(dense(x, "softmax")),
    "of TensorFlow": lambda x: dense(x, tf.nn.softmax),
    "of keras.ops": lambda x: dense(x, ops.softmax),
    "by another name": lambda x: dense(x, renamed),
    "layer of TensorFlow's": lambda x: layers.Activation(tf.nn.softmax)(dense(x)),
    "temperature before it": lambda x: layers.Softmax()(layers.Rescaling(0.5)(dense(x))),
}
SIGMOIDS: dict[str, Callable[[Any], Any]] = {
    "sigmoids": lambda x: dense(x, tf.nn.sigmoid),
    "one sigmoid, scaled by one": lambda x: layers.Rescaling(1.0)(dense(x, "sigmoid", 1)),
}
SHARES: dict[str, Callable[[Any], Any]] = {
    "mean of sigmoids": mean("sigmoid"),
    "mean of one sigmoid each": mean("sigmoid", 1),
}


def build(ending: Callable[[Any], Any]) -> keras.Model:
    keras.utils.set_random_seed(4)
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(layers.Rescaling(1 / 50)(image))
    return keras.Model(image, ending(layers.GlobalMaxPooling2D()(x)), name="mine")


def answers(model: keras.Model) -> NDArray[np.float32]:
    return model(IMAGES, training=False).numpy()


def network_of(
    kind: str, model: keras.Model, folder: Path, outputs: Outputs | None = None
) -> Network:
    if kind == "keras":
        return KerasNetwork(model, outputs=outputs)
    if not folder.exists():
        model.export(folder, verbose=False)
    return SavedModelNetwork(folder, outputs=outputs)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("gradcam_server")
    ]


def probabilities(network: Network) -> NDArray[np.float32]:
    _, logits = network.compute(tf.constant(IMAGES), [])
    return PROBABILITIES[network.output_activation](logits).numpy()


def gradients(network: Network) -> NDArray[np.float32]:
    name = next(one.name for one in network.layers if one.type in {"Conv2D"})

    def run(images: tf.Tensor) -> list[tf.Tensor]:
        (seen,), logits = network.compute(images, [name])
        return [tf.gradients(logits[:, c], seen)[0] for c in range(logits.shape[1])]

    return np.stack(tf.function(run, autograph=False)(tf.constant(IMAGES)))


def kinds(endings: Iterable[str], saved: Iterable[str]) -> pytest.MarkDecorator:
    """Each ending as a Keras model, some as SavedModels, which take a second to write."""
    cases = [("keras", one) for one in endings] + [("saved model", one) for one in saved]
    return pytest.mark.parametrize(("kind", "ending"), cases)


@kinds(DISTRIBUTIONS, ["mean of softmaxes", "temperature in the activation", "calibrated"])
def test_probabilities_are_reported_as_they_are(
    ending: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No softmax is applied to a distribution; its logits are the logarithms."""
    model = build(DISTRIBUTIONS[ending])
    expected = answers(model)
    assert expected.std(axis=0).max() > 0.01
    network = network_of(kind, model, tmp_path / "saved")
    np.testing.assert_allclose(probabilities(network), expected, rtol=1e-4, atol=1e-6)
    _, logits = network.compute(tf.constant(IMAGES), [])
    np.testing.assert_allclose(tf.nn.softmax(logits), expected, rtol=1e-3, atol=1e-5)
    assert (np.abs(gradients(network)).max(axis=(1, 2, 3, 4)) > 0).all()
    assert not warnings(caplog)


@kinds(SOFTMAXES | SIGMOIDS, ["softmax, scaled by one", "by another name"])
def test_activations_are_told_by_what_they_do(
    ending: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever their names and positions, probabilities are the model's own."""
    model = build((SOFTMAXES | SIGMOIDS)[ending])
    expected = answers(model)
    network = network_of(kind, model, tmp_path / "saved")
    np.testing.assert_allclose(probabilities(network), expected, rtol=1e-4, atol=1e-6)
    if kind == "keras":
        wanted = OutputActivation.SOFTMAX if ending in SOFTMAXES else OutputActivation.SIGMOID
        assert network.output_activation is wanted
        assert not warnings(caplog)


@kinds(SHARES, ["mean of sigmoids"])
def test_what_cannot_be_told_is_a_warning(
    ending: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers from 0 to 1 that need not sum to 1: the warning names the setting, which ends it."""
    model = build(SHARES[ending])
    expected = answers(model)
    network = network_of(kind, model, tmp_path / "saved")
    (warning,) = warnings(caplog)
    assert "--outputs logits, softmax, sigmoid or probabilities" in warning
    np.testing.assert_allclose(probabilities(network), expected, rtol=1e-4, atol=1e-6)
    assert (np.abs(gradients(network)).max(axis=(1, 2, 3, 4)) > 0).all()
    caplog.clear()
    said = network_of(kind, model, tmp_path / "saved", Outputs.PROBABILITIES)
    np.testing.assert_allclose(probabilities(said), expected, rtol=1e-4, atol=1e-6)
    denied = network_of(kind, model, tmp_path / "saved", Outputs.SIGMOID)
    _, logits = denied.compute(tf.constant(IMAGES), [])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)
    assert not warnings(caplog)


LOGITS: dict[str, tuple[Callable[[Any], Any], OutputActivation]] = {
    "linear": (dense, OutputActivation.SOFTMAX),
    "one linear": (lambda x: dense(x, None, 1), OutputActivation.SIGMOID),
    "mean of logits": (lambda x: layers.Average()([dense(x), dense(x)]), OutputActivation.SOFTMAX),
    "logits, scaled": (lambda x: layers.Rescaling(0.5)(dense(x)), OutputActivation.SOFTMAX),
    "one logit, divided": (lambda x: dense(x, None, 1) / 2.0, OutputActivation.SIGMOID),
    "logarithm of a mean": (lambda x: ops.log(mean("softmax")(x)), OutputActivation.SOFTMAX),
    "log-softmax": (lambda x: ops.log_softmax(dense(x)), OutputActivation.SOFTMAX),
    "log-softmax of TensorFlow": (
        lambda x: dense(x, tf.nn.log_softmax),
        OutputActivation.SOFTMAX,
    ),
}


@kinds(LOGITS, ["linear", "logits, scaled", "logarithm of a mean"])
def test_logits_stay_logits(
    ending: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Outputs of both signs, or logarithms of a distribution, get their softmax or sigmoid."""
    apply, activation = LOGITS[ending]
    model = build(apply)
    own = answers(model)
    network = network_of(kind, model, tmp_path / "saved")
    assert network.output_activation is activation
    expected = PROBABILITIES[activation](own)
    np.testing.assert_allclose(probabilities(network), expected, rtol=1e-4, atol=1e-6)
    assert not warnings(caplog)


@pytest.mark.parametrize(
    "ending",
    [
        lambda x: layers.Rescaling(100.0)(dense(x, "softmax")),
        lambda x: layers.ReLU()(dense(x)),
        lambda x: ops.log(mean("sigmoid")(x)),
    ],
    ids=["percent", "relu", "logarithms of shares"],
)
def test_numbers_of_one_sign_are_warned_of(
    ending: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """They are taken for logits, with a warning."""
    KerasNetwork(build(ending))
    (warning,) = warnings(caplog)
    assert "it cannot be told whether its outputs" in warning
    assert "--outputs" in warning


def test_an_activation_is_only_taken_off_if_it_explains_the_outputs() -> None:
    """A layer that changes the values of its activation is kept whole."""
    model = build(
        lambda x: layers.Rescaling(0.5)(Doubled(CLASSES, "softmax", kernel_initializer=RANDOM)(x))
    )
    expected = answers(model)
    network = KerasNetwork(model)
    assert network.output_activation is OutputActivation.EXPONENTIAL
    np.testing.assert_allclose(probabilities(network), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ending", [mean("softmax"), mean("sigmoid"), mean("sigmoid", 1)])
def test_certain_answers_have_finite_logits_and_slopes(ending: Callable[[Any], Any]) -> None:
    """Probabilities of exactly 0 and 1 are kept."""
    model = build(lambda x: ending(layers.Rescaling(1e5)(x)))
    expected = answers(model)
    assert expected.min() == 0 or expected.max() == 1
    network = KerasNetwork(model)
    _, logits = network.compute(tf.constant(IMAGES), [])
    assert np.isfinite(logits).all()
    assert np.isfinite(gradients(network)).all()
    np.testing.assert_allclose(probabilities(network), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("ending", "outputs", "message"),
    [
        (mean("softmax"), Outputs.LOGITS, "are probabilities already.*--outputs probabilities"),
        (mean("softmax"), Outputs.SOFTMAX, "are probabilities already"),
        (mean("softmax"), Outputs.SIGMOID, "are probabilities already"),
        (dense, Outputs.PROBABILITIES, "no probabilities: they are from "),
        (lambda x: dense(x, None, 1), Outputs.SOFTMAX, "one output, whose softmax is always 1"),
        (SOFTMAXES["softmax"], Outputs.LOGITS, "ends in a softmax of its own"),
        (SOFTMAXES["softmax"], Outputs.SIGMOID, "ends in a softmax of its own"),
        (SIGMOIDS["sigmoids"], Outputs.SOFTMAX, "ends in a sigmoid of its own"),
    ],
)
def test_what_the_outputs_cannot_be_is_refused(
    ending: Callable[[Any], Any], outputs: Outputs, message: str
) -> None:
    """A declaration is checked against the model's answers."""
    with pytest.raises(StartupError, match=f"--outputs {outputs}: .*{message}"):
        KerasNetwork(build(ending), outputs=outputs)


@pytest.mark.parametrize(
    ("ending", "outputs", "activation"),
    [
        (dense, Outputs.LOGITS, OutputActivation.SOFTMAX),
        (dense, Outputs.SOFTMAX, OutputActivation.SOFTMAX),
        (dense, Outputs.SIGMOID, OutputActivation.SIGMOID),
        (lambda x: dense(x, None, 1), Outputs.LOGITS, OutputActivation.SIGMOID),
        (lambda x: layers.ReLU()(dense(x)), Outputs.SIGMOID, OutputActivation.SIGMOID),
        (SOFTMAXES["softmax"], Outputs.SOFTMAX, OutputActivation.SOFTMAX),
        (SOFTMAXES["softmax"], Outputs.PROBABILITIES, OutputActivation.SOFTMAX),
        (mean("softmax"), Outputs.PROBABILITIES, OutputActivation.EXPONENTIAL),
    ],
)
def test_what_is_declared_is_done(
    ending: Callable[[Any], Any],
    outputs: Outputs,
    activation: OutputActivation,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The declared kind is used, without a warning."""
    assert KerasNetwork(build(ending), outputs=outputs).output_activation is activation
    assert not warnings(caplog)


def test_a_shared_last_layer_keeps_its_activation_elsewhere() -> None:
    """The activation is removed from its last call only."""

    def twice(x: Any) -> Any:
        shared = layers.Dense(6, "softmax", kernel_initializer=RANDOM)
        return shared(shared(x))

    model = build(twice)
    expected = answers(model)
    network = KerasNetwork(model)
    assert network.output_activation is OutputActivation.SOFTMAX
    np.testing.assert_allclose(probabilities(network), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(answers(model), expected, rtol=1e-6)


NO_AND_YES = {
    "sigmoid": lambda x: dense(x, "sigmoid", 1),
    "logit": lambda x: dense(x, None, 1),
    "mean": mean("sigmoid", 1),
}


@pytest.mark.parametrize("ending", NO_AND_YES)
def test_two_names_make_two_classes_of_one_output(ending: str, tmp_path: Path) -> None:
    """The negative class comes first; its values mirror the positive class's."""
    model = build(NO_AND_YES[ending])
    positive = answers(model)
    if ending == "logit":
        positive = tf.nn.sigmoid(positive).numpy()
    names = tmp_path / "names.txt"
    names.write_text("healthy\nill\n")
    model.save(tmp_path / "m.keras")
    network = load(ModelSpec("mine", str(tmp_path / "m.keras"), labels=names)).network
    assert network.class_count == 2
    expected = np.concatenate([1 - positive, positive], axis=1)
    np.testing.assert_allclose(probabilities(network), expected, rtol=1e-4, atol=1e-6)
    negative_slope, positive_slope = gradients(network)
    assert np.abs(positive_slope).max() > 0
    np.testing.assert_allclose(negative_slope, -positive_slope, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "names"),
    [("ill\n", ["ill"]), ("ill\n\n\n", ["ill"]), ("healthy\nill\n\n", ["healthy", "ill"])],
)
def test_one_output_has_one_name_or_two(text: str, names: list[str], tmp_path: Path) -> None:
    """One name is of the positive class; empty lines at the end are ignored."""
    file = tmp_path / "names.txt"
    file.write_text(text)
    build(NO_AND_YES["sigmoid"]).save(tmp_path / "m.keras")
    loaded = load(ModelSpec("mine", str(tmp_path / "m.keras"), labels=file))
    assert [label.name for label in loaded.labels.labels] == names
    assert loaded.network.class_count == len(names)


def test_three_names_are_too_many_for_one_output(tmp_path: Path) -> None:
    """The error says how many there may be."""
    file = tmp_path / "names.txt"
    file.write_text("a\nb\nc\n")
    build(NO_AND_YES["sigmoid"]).save(tmp_path / "m.keras")
    with pytest.raises(StartupError, match="names 3 classes, .* the negative and the positive"):
        load(ModelSpec("mine", str(tmp_path / "m.keras"), labels=file))


def test_built_in_models_know_their_outputs() -> None:
    """The option is refused for them."""
    with pytest.raises(StartupError, match="--outputs logits: resnet50 is built in"):
        load(ModelSpec("resnet50", "resnet50", "none", outputs=Outputs.LOGITS))


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("function", [tf.nn.softmax, tf.nn.log_softmax, ops.softmax, tf.nn.sigmoid])
def test_functions_of_tensorflow_need_no_registration(
    function: Callable[[Any], Any], name: str, tmp_path: Path
) -> None:
    """A file that names them is read, and answers as the model's own predict."""
    model = build(lambda x: dense(layers.Activation(tf.nn.leaky_relu)(x), function))
    model.save(tmp_path / name)
    network = load(ModelSpec("mine", str(tmp_path / name))).network
    expected = model.predict(IMAGES, verbose=0)
    if function is tf.nn.log_softmax:
        expected = np.exp(expected)
    np.testing.assert_allclose(probabilities(network), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ending", ["softmax", "softmax, scaled by one", "sigmoids"])
def test_endings_in_16_bits_are_told(ending: str, caplog: pytest.LogCaptureFixture) -> None:
    """Rounding to 16 bits does not hide a softmax or sigmoid."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build((SOFTMAXES | SIGMOIDS)[ending])
    finally:
        keras.config.set_dtype_policy("float32")
    network = KerasNetwork(model)
    wanted = OutputActivation.SOFTMAX if ending in SOFTMAXES else OutputActivation.SIGMOID
    assert network.output_activation is wanted
    np.testing.assert_allclose(probabilities(network), answers(model), atol=5e-3)
    assert not warnings(caplog)
