"""Keras models: nested, with shared layers, with any last layer."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gradcam_server.domain.layers import default_layer
from gradcam_server.domain.options import Precision
from gradcam_server.errors import StartupError
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.network import OutputActivation

SIZE = 12
CLASSES = 3
SHAPE = (SIZE, SIZE, 3)


@pytest.fixture(autouse=True)
def seed() -> None:
    keras.utils.set_random_seed(1)


@pytest.fixture
def images() -> tf.Tensor:
    return tf.constant(np.random.default_rng(2).normal(size=(2, *SHAPE)).astype(np.float32))


def trunk(name: str, size: int | None = SIZE) -> keras.Model:
    """A residual block; "middle" is in one of its two branches."""
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(4, 3, padding="same", name="middle")(x)
    y = layers.BatchNormalization(name="normal")(y)
    x = layers.Add(name="sum")([x, layers.Dropout(0.5, name="drop")(y)])
    x = layers.Conv2D(5, 3, strides=2, name="reduce")(x)
    return keras.Model(image, layers.ReLU(name="last")(x), name=name)


def head() -> list[keras.Layer]:
    return [layers.GlobalAveragePooling2D(), layers.Dropout(0.3), layers.Dense(CLASSES)]


def flat() -> keras.Model:
    base = trunk("trunk")
    x = base.output
    for layer in head():
        x = layer(x)
    return keras.Model(base.input, x, name="flat")


def in_sequential() -> keras.Model:
    return keras.Sequential([trunk("trunk"), *head()])


def in_functional() -> keras.Model:
    image = keras.Input(SHAPE)
    x = layers.Rescaling(0.5)(image)
    x = trunk("trunk")(x, training=True)  # Saved so by accident; served in inference mode.
    for layer in head():
        x = layer(x)
    return keras.Model(image, x)


def in_nested() -> keras.Model:
    image = keras.Input(SHAPE)
    inner = keras.Model(image, trunk("trunk", None)(layers.ZeroPadding2D()(image)), name="inner")
    return keras.Sequential([keras.Input(SHAPE), inner, *head()])


def sequential_in_functional() -> keras.Model:
    image = keras.Input(SHAPE)
    return keras.Model(image, keras.Sequential([trunk("trunk"), *head()], name="inner")(image))


def unbuilt() -> keras.Model:
    return keras.Sequential([layers.RandomFlip(name="flip"), trunk("trunk", None), *head()])


KINDS: dict[Callable[[], keras.Model], str] = {
    flat: "",
    in_sequential: "trunk/",
    in_functional: "trunk/",
    in_nested: "inner/trunk/",
    sequential_in_functional: "inner/trunk/",
    unbuilt: "trunk/",
}


def layer_at(model: keras.Model, path: str) -> Any:
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


def run(network: Any, images: tf.Tensor, layer: str, xla: bool) -> tuple[np.ndarray, ...]:
    def explain(images: tf.Tensor) -> tuple[tf.Tensor, ...]:
        (activation,), logits = network.compute(images, [layer])
        return activation, tf.gradients(tf.reduce_sum(logits[:, -1]), activation)[0], logits

    activation, gradient, logits = tf.function(explain, jit_compile=xla, autograph=False)(images)
    return activation.numpy(), gradient.numpy(), logits.numpy()


@pytest.mark.parametrize("xla", [False, True], ids=["tensorflow", "xla"])
@pytest.mark.parametrize("build", KINDS)
def test_gradients_reach_nested_layers(
    build: Callable[[], keras.Model], xla: bool, images: tf.Tensor
) -> None:
    """Also inside a residual block; the oracle is an eager tape over the Keras model."""
    model, path = build(), f"{KINDS[build]}middle"
    network = KerasNetwork(model, (SIZE, SIZE))
    _, gradient, logits = run(network, images, path, xla)
    keras.utils.set_random_seed(1)  # the same weights, before normalisations are folded
    twin = build()
    twin(images, training=False)
    convolution = layer_at(twin, path)
    with tf.GradientTape() as tape:
        expected = twin(images, training=False)
        score = tf.reduce_sum(expected[:, -1])
    # A bias is added at every position: its gradient is the sum of theirs.
    by_bias = tape.gradient(score, convolution.bias.value)
    np.testing.assert_allclose(gradient.sum((0, 1, 2)), by_bias, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient).max(axis=(1, 2, 3)).all()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", KINDS)
def test_layers_have_paths(build: Callable[[], keras.Model], images: tf.Tensor) -> None:
    """The nested model is replaced by its layers; the default is the last before the pooling."""
    network = KerasNetwork(build(), (SIZE, SIZE))
    names = [layer.name for layer in network.layers]
    prefix = KINDS[build]
    start = names.index(f"{prefix}stem")
    expected = ["stem", "middle", "normal", "drop", "sum", "reduce", "last"]
    assert names[start : start + 7] == [prefix + name for name in expected]
    assert default_layer(network.layers) == f"{prefix}last"
    assert (network.input_size, network.class_count) == ((SIZE, SIZE), CLASSES)
    assert network.layers[0].type == "InputLayer"
    assert not network.layers[0].explainable
    by_name = {layer.name: layer for layer in network.layers}
    wanted = [name for name, layer in by_name.items() if layer.explainable]
    outputs, _ = network.compute(images, wanted)
    for name, output in zip(wanted, outputs, strict=True):
        assert output.shape[1:] == by_name[name].output_shape[1:]


def test_the_layers_of_a_flat_model_are_keras_own() -> None:
    """The same names in the same order as ``model.layers``."""
    model = flat()
    names = [layer.name for layer in KerasNetwork(model).layers]
    assert names == [layer.name for layer in model.layers]


def test_outputs_of_layers_are_those_of_the_nested_model(images: tf.Tensor) -> None:
    """They equal what the nested model computes."""
    model = in_sequential()
    (seen,), _ = KerasNetwork(model).compute(images, ["trunk/sum"])
    nested = model.get_layer("trunk")
    expected = keras.Model(nested.inputs, nested.get_layer("sum").output)(images, training=False)
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


def test_each_call_of_a_shared_layer_can_be_seen(images: tf.Tensor) -> None:
    """The second call of "conv" is "conv#2", also within a model that is called twice."""
    image = keras.Input(SHAPE)
    shared = layers.Conv2D(3, 3, padding="same", name="conv")
    base = keras.Sequential([layers.Conv2D(3, 1, name="inside")], name="base")
    x = base(base(shared(shared(image))))
    model = keras.Model(image, layers.Dense(CLASSES)(layers.GlobalMaxPooling2D()(x)))
    network = KerasNetwork(model)
    names = [layer.name for layer in network.layers if layer.explainable]
    assert names == ["conv", "conv#2", "base/inside", "base#2/inside"]
    seen, _ = network.compute(images, names)
    np.testing.assert_allclose(seen[1], shared(shared(images)), rtol=1e-5)
    np.testing.assert_allclose(seen[3], base(base(seen[1])), rtol=1e-5)


def test_operations_are_layers_too(images: tf.Tensor) -> None:
    """``x + y`` and keras.ops in a functional model can be explained."""
    image = keras.Input(SHAPE)
    x = layers.Conv2D(4, 1)(image)
    x = keras.ops.relu(x + layers.Conv2D(4, 1)(image))
    logits = layers.Dense(CLASSES)(keras.ops.mean(x, axis=(1, 2)))
    network = KerasNetwork(keras.Model(image, logits))
    last = next(layer for layer in network.layers if layer.name == default_layer(network.layers))
    assert last.type == "Relu"
    assert run(network, images, last.name, xla=False)[1].any()


ENDINGS: dict[str, tuple[Callable[[Any], Any], OutputActivation]] = {
    "dense softmax": (layers.Dense(CLASSES, "softmax"), OutputActivation.SOFTMAX),
    "dense sigmoid": (layers.Dense(CLASSES, "sigmoid"), OutputActivation.SIGMOID),
    "one sigmoid": (layers.Dense(1, "sigmoid"), OutputActivation.SIGMOID),
    "activation": (
        lambda x: layers.Activation("softmax", dtype="float32")(layers.Dense(CLASSES)(x)),
        OutputActivation.SOFTMAX,
    ),
    "softmax layer": (
        lambda x: layers.Softmax()(layers.Dense(CLASSES)(x)),
        OutputActivation.SOFTMAX,
    ),
    "ops.softmax": (
        lambda x: keras.ops.softmax(layers.Dense(CLASSES)(x)),
        OutputActivation.SOFTMAX,
    ),
    "ops.sigmoid": (
        lambda x: keras.ops.sigmoid(layers.Dense(CLASSES)(x)),
        OutputActivation.SIGMOID,
    ),
    "function": (
        lambda x: keras.activations.softmax(layers.Dense(CLASSES)(x)),
        OutputActivation.SOFTMAX,
    ),
    "linear behind": (
        lambda x: layers.Activation("linear")(layers.Dense(CLASSES, "softmax")(x)),
        OutputActivation.SOFTMAX,
    ),
    "nested": (
        lambda x: keras.Sequential([layers.Dense(4), layers.Dense(CLASSES, "softmax")])(x),
        OutputActivation.SOFTMAX,
    ),
    "nested twice": (
        lambda x: keras.Sequential([keras.Sequential([layers.Dense(CLASSES), layers.Softmax()])])(
            x
        ),
        OutputActivation.SOFTMAX,
    ),
    "convolution": (
        lambda x: layers.Flatten()(
            layers.Conv2D(CLASSES, 1, activation="softmax")(layers.Reshape((1, 1, 5))(x))
        ),
        OutputActivation.SOFTMAX,
    ),
    "reshaped": (
        lambda x: layers.Softmax()(
            layers.Reshape((CLASSES,))(layers.Conv2D(CLASSES, 1)(layers.Reshape((1, 1, 5))(x)))
        ),
        OutputActivation.SOFTMAX,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_scores_are_taken_before_the_last_activation(ending: str, images: tf.Tensor) -> None:
    """The model's probabilities follow from the logits, whatever its last layer."""
    apply, activation = ENDINGS[ending]
    base = trunk("trunk")
    model = keras.Model(base.input, apply(layers.GlobalAveragePooling2D()(base.output)))
    probabilities = model(images, training=False).numpy().astype(np.float64)
    network = KerasNetwork(model)
    assert network.output_activation is activation
    _, gradient, logits = run(network, images, "last", xla=False)
    assert gradient.any()
    if activation is OutputActivation.SIGMOID:
        expected = np.log(probabilities / (1 - probabilities))
    else:
        logits = logits - logits[:, :1]
        expected = np.log(probabilities / probabilities[:, :1])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "activation"), [(3, OutputActivation.SOFTMAX), (1, OutputActivation.SIGMOID)]
)
def test_linear_outputs_are_taken_for_logits(
    classes: int, activation: OutputActivation, images: tf.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """A single output is a log-odds; the log says what was assumed."""
    base = trunk("trunk")
    output = layers.Dense(classes)(layers.Flatten()(base.output))
    model = keras.Model(base.input, output)
    with caplog.at_level("INFO"):
        network = KerasNetwork(model)
    assert "neither softmax nor sigmoid" in caplog.text
    assert network.output_activation is activation
    _, logits = network.compute(images, [])
    np.testing.assert_allclose(logits, model(images, training=False), rtol=1e-5, atol=1e-6)


def test_softmax_over_positions_is_no_ending(images: tf.Tensor) -> None:
    """Only a softmax over the classes is removed; other outputs are reported as they are."""
    base = trunk("trunk")
    x = layers.Flatten()(layers.Softmax()(base.output))
    network = KerasNetwork(model := keras.Model(base.input, x))
    _, logits = network.compute(images, [])
    np.testing.assert_allclose(tf.nn.sigmoid(logits), model(images), rtol=1e-5, atol=1e-6)


def test_mixed_precision_gives_float32_logits(images: tf.Tensor) -> None:
    """Layers may compute in 16 bits; logits are float32."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = in_sequential()
    finally:
        keras.config.set_dtype_policy("float32")
    activation, gradient, logits = run(KerasNetwork(model), images, "trunk/last", xla=False)
    assert activation.dtype == np.float16
    assert logits.dtype == np.float32
    assert gradient.any()
    np.testing.assert_allclose(logits, model(images, training=False), atol=1e-3)


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_inputs_are_cast_to_what_the_model_declares(dtype: str) -> None:
    """A model that takes uint8 pixels gets them."""
    image = keras.Input(SHAPE, dtype=dtype)
    x = layers.Conv2D(2, 1)(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, layers.Dense(CLASSES)(layers.Flatten()(x)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.float32)
    _, logits = KerasNetwork(model).compute(tf.constant(pixels), [])
    np.testing.assert_allclose(logits, model(pixels.astype(dtype)), rtol=1e-4, atol=1e-5)


def test_open_sizes_are_chosen_or_224() -> None:
    """The size is compiled in; another size for a model of a fixed size is an error."""
    open_model = keras.Sequential([trunk("trunk", None), *head()])
    assert KerasNetwork(open_model).input_size == (224, 224)
    assert KerasNetwork(open_model, (32, 48)).input_size == (32, 48)
    assert KerasNetwork(flat(), (SIZE, SIZE)).input_size == (SIZE, SIZE)
    with pytest.raises(StartupError, match=r"takes images of 12x12, which --input-size cannot"):
        KerasNetwork(flat(), (32, 32))


class Subclassed(keras.Model):
    def call(self, inputs: Any) -> Any:
        return inputs[:, 0, 0]


def two_inputs() -> keras.Model:
    images = [keras.Input(SHAPE), keras.Input(SHAPE)]
    return keras.Model(images, layers.Flatten()(layers.Add()(images)))


def two_outputs() -> keras.Model:
    base = flat()
    return keras.Model(base.input, [base.output, base.output * 2])


def of_input(shape: tuple[int, ...]) -> keras.Model:
    return keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(2)])


def channels_first() -> keras.Model:
    image = keras.Input(SHAPE)
    x = layers.Conv2D(2, 1, data_format="channels_first")(layers.Permute((3, 1, 2))(image))
    inner = keras.Model(image, x)
    return keras.Sequential([inner, *head()])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Subclassed, "subclassed model"),
        (two_inputs, "it has 2 inputs"),
        (two_outputs, r"must be \(batch, classes\), and is \(None, 3\), \(None, 3\)"),
        (lambda: of_input((5,)), r"must be \(batch, height, width, 3\), and is \(None, 5\)"),
        (lambda: of_input((8, 8, 1)), r"and is \(None, 8, 8, 1\)"),
        (lambda: of_input((3, 8, 8)), r"and is \(None, 3, 8, 8\)"),
        (lambda: trunk("trunk"), r"\(batch, classes\), and is \(None, 5, 5, 5\)"),
        (channels_first, "conv2d is channels_first"),
        (lambda: keras.Sequential([layers.Reshape((7,)), layers.Dense(2)]), "--input-size"),
    ],
)
def test_models_that_cannot_be_explained_are_refused(
    build: Callable[[], keras.Model], message: str
) -> None:
    """When they are loaded, with the reason."""
    keras.backend.clear_session()
    with pytest.raises(StartupError, match=message):
        KerasNetwork(build())


@pytest.mark.parametrize(
    ("precision", "tolerance"), [(Precision.FLOAT32, 1e-5), (Precision.BFLOAT16, 0.02)]
)
def test_weights_are_turned_instead_of_channels(
    precision: Precision, tolerance: float, images: tf.Tensor
) -> None:
    """Given RGB, a network for BGR answers as if the channels had been reversed."""
    image = keras.Input(SHAPE)
    x = layers.Conv2D(3, 3, name="first")(layers.ZeroPadding2D(1)(image))
    x = layers.BatchNormalization(name="normal")(x)
    shared = layers.Conv2D(3, 3, padding="same")
    x = layers.GlobalMaxPooling2D()(shared(shared(x)))
    network = KerasNetwork(keras.Model(image, layers.Dense(CLASSES)(x)))
    assert network.can_reverse
    names = ["first", "normal"]
    (first, normal), logits = network.compute(images, names, precision)
    seen, others = network.compute(tf.reverse(images, [-1]), names, precision, is_reversed=True)
    for found, expected in zip([*seen, others], [first, normal, logits], strict=True):
        found, expected = (tf.cast(one, tf.float32).numpy() for one in (found, expected))
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=limit)
        assert expected.std() > 2 * limit
    _, unturned = network.compute(tf.reverse(images, [-1]), names, precision)
    assert np.abs(unturned - logits).max() > 2 * tolerance * np.abs(logits).max()


def test_channels_of_an_image_that_is_used_twice_are_not_reversed() -> None:
    """Only the kernel of a convolution that alone takes the image is reversed."""
    image = keras.Input(SHAPE)
    x = layers.Concatenate()([layers.Conv2D(3, 3, padding="same")(image), image])
    model = keras.Model(image, layers.Dense(CLASSES)(layers.GlobalMaxPooling2D()(x)))
    assert not KerasNetwork(model).can_reverse


def test_the_head_makes_the_logits(images: tf.Tensor) -> None:
    """The named features times the kernel are the logits, also below a softmax."""
    network = KerasNetwork(flat())
    head = network.head
    assert head
    (features,), logits = network.compute(images, [head.features])
    differences = np.matmul(features, head.kernel) - logits  # the bias
    assert head.kernel.shape == (features.shape[1], CLASSES)
    np.testing.assert_allclose(differences - differences[:1], 0, atol=1e-5)


@pytest.mark.parametrize("end", ["normalisation", "activation", "convolution"])
def test_what_is_no_dense_layer_is_no_head(end: str) -> None:
    """The gradient of its logits is not a column of its kernel."""
    image = keras.Input(SHAPE)
    x = layers.Conv2D(CLASSES, 3)(image)
    if end == "convolution":
        x = layers.GlobalMaxPooling2D()(x)
    else:
        activation = "relu" if end == "activation" else None
        x = layers.Dense(CLASSES, activation=activation)(layers.GlobalMaxPooling2D()(x))
    if end == "normalisation":
        x = layers.BatchNormalization()(x)
    assert KerasNetwork(keras.Model(image, x)).head is None
