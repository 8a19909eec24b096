"""The compiled graph, against an eager gradient tape on the same network."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradcam_server.graph import CompilationCounter, ExplanationGraph, GraphItem, by_rank
from gradcam_server.labels import ClassLabel, ClassLabels
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.preprocessing import Preprocessing, preprocess
from gradcam_server.requests import Method

SIZE, CLASSES, TARGETS = 32, 6, 3
RTOL = 1e-4  # float32, other orders of summation


def build_network() -> keras.Model:
    """A residual CNN with inference-mode BatchNorm: small, and not trivially linear."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="conv1")(inputs)
    x = keras.layers.BatchNormalization(name="bn1")(x)
    shortcut = keras.layers.ReLU(name="relu1")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2")(shortcut)
    x = keras.layers.Conv2D(8, 3, padding="same", name="conv3")(x)
    x = keras.layers.ReLU(name="block")(keras.layers.Add()([x, shortcut]))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(0.5)(x)
    network = keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(x))
    for layer in network.layers:
        layer.set_weights([np.abs(w) if w.ndim == 1 else 3 * w for w in layer.get_weights()])
    return network


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    labels = ClassLabels([ClassLabel(f"class {index}") for index in range(CLASSES)])
    return LoadedModel("small", build_network(), Preprocessing.LITE, labels, "random", True)


@pytest.fixture(scope="module")
def graph(model: LoadedModel) -> ExplanationGraph:
    return compiled(model, "block", (1, 2, 4))


def compiled(model: LoadedModel, layer: str, sizes: tuple[int, ...]) -> ExplanationGraph:
    graph = ExplanationGraph(model, layer, Method.GRAD_CAM, TARGETS, CompilationCounter())
    graph.compile(sizes)
    return graph


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def tape_grad_cam(model: LoadedModel, layer: str, image: np.ndarray, index: int) -> np.ndarray:
    """Grad-CAM as tutorials compute it: eager, one image, NumPy for the sum."""
    network = keras.Model(
        model.network.input, [model.network.get_layer(layer).output, model.network.output]
    )
    with tf.GradientTape() as tape:
        activation, logits = network((image[None].astype(np.float32) - 127) / 128, training=False)
        score = logits[0, index]
    gradient = tape.gradient(score, activation)
    if gradient is None:
        raise AssertionError("the tape lost the activation")
    weights = gradient.numpy()[0].astype(np.float64).mean(axis=(0, 1))
    return np.asarray((activation.numpy()[0] * weights).sum(axis=-1))


@pytest.mark.parametrize("layer", ["block", "conv3", "conv2", "relu1", "bn1", "conv1"])
def test_maps_agree_with_an_eager_tape(model: LoadedModel, layer: str) -> None:
    """The compiled map is the textbook's, at the end, in mid-block and before a shortcut."""
    graph = compiled(model, layer, (2,))
    images = pictures(2)
    items = [GraphItem(images[0], [4, 1]), GraphItem(images[1], [0])]
    outputs = graph.run(items, 2)
    for item, output in zip(items, outputs, strict=True):
        for index, one in zip(item.classes, output.maps, strict=True):
            expected = tape_grad_cam(model, layer, item.image, index)
            tolerance = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(one, expected, rtol=RTOL, atol=tolerance)


def test_logits_are_the_networks_own(model: LoadedModel, graph: ExplanationGraph) -> None:
    """The graph predicts what the network predicts, and softmax sums to one."""
    images = pictures(4)
    outputs = graph.run([GraphItem(image, []) for image in images], 4)
    expected = model.network((images.astype(np.float32) - 127) / 128, training=False).numpy()
    logits = np.stack([output.logits for output in outputs])
    np.testing.assert_allclose(logits, expected, rtol=RTOL, atol=1e-4)
    probabilities = np.stack([output.probabilities for output in outputs])
    np.testing.assert_allclose(probabilities, tf.nn.softmax(expected).numpy(), rtol=1e-3)


def test_the_batch_does_not_matter(graph: ExplanationGraph) -> None:
    """Alone, in company and padded, an image has the same logits and maps within rtol 1e-4."""
    images = pictures(4)
    items = [GraphItem(image, [row, by_rank(0)]) for row, image in enumerate(images)]
    together = graph.run(items, 4)
    for row, item in enumerate(items):
        alone = graph.run([item], 1)[0]
        padded = graph.run([item], 4)[0]
        for other in (alone, padded):
            scale = np.abs(together[row].maps).max()
            np.testing.assert_allclose(other.maps, together[row].maps, rtol=RTOL, atol=1e-5 * scale)
            np.testing.assert_allclose(other.logits, together[row].logits, rtol=RTOL, atol=1e-4)
            assert other.classes.tolist() == together[row].classes.tolist()


def test_neighbours_in_a_batch_change_nothing(graph: ExplanationGraph) -> None:
    """Other images and other classes beside it leave a map bit-identical."""
    images = pictures(4)
    item = GraphItem(images[0], [2])
    first = graph.run([item, GraphItem(images[1], [5])], 2)[0]
    second = graph.run([item, GraphItem(images[3], [0, 1, 2])], 2)[0]
    np.testing.assert_array_equal(first.maps, second.maps)


def test_ranks_choose_the_best_classes(graph: ExplanationGraph) -> None:
    """Rank 0 is the top class; ranks and indices may be mixed."""
    image = pictures(1)[0]
    output = graph.run([GraphItem(image, [by_rank(0), by_rank(1), 3])], 1)[0]
    order = np.argsort(-output.logits)
    assert output.classes.tolist() == [order[0], order[1], 3]
    by_index = graph.run([GraphItem(image, output.classes.tolist())], 1)[0]
    np.testing.assert_array_equal(output.maps, by_index.maps)


def test_no_targets_mean_no_maps(graph: ExplanationGraph) -> None:
    """Prediction alone is possible."""
    output = graph.run([GraphItem(pictures(1)[0], [])], 1)[0]
    assert output.maps.shape == (0, SIZE // 2, SIZE // 2)
    assert output.classes.shape == (0,)


def test_nothing_is_traced_after_the_ladder(model: LoadedModel) -> None:
    """The counter stands still whatever is run."""
    counter = CompilationCounter()
    graph = ExplanationGraph(model, "block", Method.GRAD_CAM, TARGETS, counter)
    graph.compile((1, 4))
    assert counter.count == 2
    images = pictures(4)
    for count in (1, 2, 3, 4):
        items = [GraphItem(image, list(range(count % 3))) for image in images[:count]]
        graph.run(items, 1 if count == 1 else 4)
    assert counter.count == 2


def test_more_slots_than_classes_are_fine() -> None:
    """A model of two classes works with the default number of targets."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    labels = ClassLabels([ClassLabel("no"), ClassLabel("yes")])
    model = LoadedModel("two", network, Preprocessing.LITE, labels, "random", True)
    graph = compiled(model, "conv", (1,))
    output = graph.run([GraphItem(np.zeros((8, 8, 3), np.uint8), [by_rank(0), by_rank(1)])], 1)[0]
    assert sorted(output.classes.tolist()) == [0, 1]


def test_caffe_preprocessing_is_keras_own() -> None:
    """ResNet50's inputs are scaled as keras.applications scales them."""
    images = pictures(2)
    expected = keras.applications.resnet.preprocess_input(images.astype(np.float32))
    np.testing.assert_allclose(preprocess(images, Preprocessing.CAFFE), expected, atol=1e-4)
