"""The compiled graph, against an eager gradient tape on the same network."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradcam_server.domain.graph_io import PIXELS, GraphItem, GraphKey, GraphTarget, by_rank
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.graphs.compilers.autotune import compile_graph
from gradcam_server.graphs.executable import CompilationCounter, CompiledGraph
from gradcam_server.graphs.explanation import ExplanationGraph
from gradcam_server.methods.one_pass import METHODS
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.preprocessing import preprocess
from oracles.reference import coefficients
from support.small_model import CLASSES, SIZE, build_network, load_small

TARGETS = 3
RTOL = 1e-4  # float32, other orders of summation


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_small()


@pytest.fixture(scope="module")
def graph(model: LoadedModel) -> CompiledGraph:
    return compiled(model, "block", (1, 2, 4))


def compiled(
    model: LoadedModel, layer: str, sizes: tuple[int, ...], *more_layers: str
) -> CompiledGraph:
    return compile_key(model, key(layer, *more_layers), sizes)


def compile_key(model: LoadedModel, key: GraphKey, sizes: tuple[int, ...]) -> CompiledGraph:
    graph = ExplanationGraph(model, key, CompilationCounter())
    return compile_graph(graph, sizes, Compiler.XLA)


def key(
    *layers: str, method: Method = Method.GRAD_CAM, score_type: ScoreType = ScoreType.LOGIT
) -> GraphKey:
    return GraphKey("small", layers, method, score_type, TARGETS)


def item(image: np.ndarray, *classes: int) -> GraphItem:
    return GraphItem(image, [GraphTarget(index) for index in classes])


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def tape_grad_cam(model: LoadedModel, layer: str, image: np.ndarray, index: int) -> np.ndarray:
    """Grad-CAM as tutorials compute it: eager, one image, NumPy for the sum."""
    network = build_network()  # seeded: the same weights
    visible = keras.Model(network.input, [network.get_layer(layer).output, network.output])
    with tf.GradientTape() as tape:
        activation, logits = visible((image[None].astype(np.float32) - 127) / 128, training=False)
        score = logits[0, index]
    weights = tape.gradient(score, activation).numpy()[0].astype(np.float64).mean(axis=(0, 1))
    return np.asarray((activation.numpy()[0] * weights).sum(axis=-1))


@pytest.mark.parametrize("layer", ["block", "conv3", "conv2", "relu1", "bn1", "conv1"])
def test_maps_agree_with_an_eager_tape(model: LoadedModel, layer: str) -> None:
    """The compiled map equals the textbook's, at the end, in mid-block and before a shortcut."""
    graph = compiled(model, layer, (2,))
    images = pictures(2)
    classes = [[4, 1], [0]]
    outputs = graph.run([item(images[0], 4, 1), item(images[1], 0)], 2)
    for image, chosen, output in zip(images, classes, outputs, strict=True):
        for index, one in zip(chosen, output.maps[0], strict=True):
            expected = tape_grad_cam(model, layer, image, index)
            tolerance = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(one, expected, rtol=RTOL, atol=tolerance)


def test_logits_are_the_networks_own(model: LoadedModel, graph: CompiledGraph) -> None:
    """The graph predicts what the network predicts, and softmax sums to one."""
    images = pictures(4)
    outputs = graph.run([item(image) for image in images], 4)
    expected = build_network()((images.astype(np.float32) - 127) / 128, training=False).numpy()
    logits = np.stack([output.logits for output in outputs])
    np.testing.assert_allclose(logits, expected, rtol=RTOL, atol=1e-4)
    probabilities = np.stack([output.probabilities for output in outputs])
    np.testing.assert_allclose(probabilities, tf.nn.softmax(expected).numpy(), rtol=1e-3)


def test_the_batch_does_not_matter(graph: CompiledGraph) -> None:
    """Alone, in a batch and padded, an image has the same logits and maps within rtol 1e-4."""
    images = pictures(4)
    items = [item(image, row, by_rank(0)) for row, image in enumerate(images)]
    together = graph.run(items, 4)
    for row, one in enumerate(items):
        alone = graph.run([one], 1)[0]
        padded = graph.run([one], 4)[0]
        for other in (alone, padded):
            scale = np.abs(together[row].maps[0]).max()
            np.testing.assert_allclose(other.maps, together[row].maps, rtol=RTOL, atol=1e-5 * scale)
            np.testing.assert_allclose(other.logits, together[row].logits, rtol=RTOL, atol=1e-4)
            assert other.classes.tolist() == together[row].classes.tolist()


def test_neighbours_in_a_batch_change_nothing(graph: CompiledGraph) -> None:
    """Other images and classes in the batch leave a map bit-identical."""
    images = pictures(4)
    one = item(images[0], 2)
    first = graph.run([one, item(images[1], 5)], 2)[0]
    second = graph.run([one, item(images[3], 0, 1, 2)], 2)[0]
    np.testing.assert_array_equal(first.maps[0], second.maps[0])


def test_ranks_choose_the_best_classes(graph: CompiledGraph) -> None:
    """Rank 0 is the top class; ranks and indices may be mixed."""
    image = pictures(1)[0]
    output = graph.run([item(image, by_rank(0), by_rank(1), 3)], 1)[0]
    order = np.argsort(-output.logits)
    assert output.classes.tolist() == [order[0], order[1], 3]
    by_index = graph.run([item(image, *output.classes.tolist())], 1)[0]
    np.testing.assert_array_equal(output.maps[0], by_index.maps[0])


def test_a_contrast_is_the_difference(model: LoadedModel, graph: CompiledGraph) -> None:
    """The score and map of a contrast are those of a minus those of b."""
    image = pictures(1)[0]
    contrast = GraphItem(image, [GraphTarget(4, against=1), GraphTarget(4), GraphTarget(1)])
    output = graph.run([contrast], 1)[0]
    both, first, second = output.maps[0]
    assert output.scores[0] == pytest.approx(output.logits[4] - output.logits[1], abs=1e-5)
    scale = np.abs(both).max()
    np.testing.assert_allclose(both, first - second, rtol=1e-3, atol=1e-5 * scale)


def test_a_probability_has_its_own_gradient(model: LoadedModel) -> None:
    """Its map is p_c (map of z_c - sum_j p_j map of z_j): Grad-CAM is linear in the gradient."""
    image = pictures(1)[0]
    probability = compile_key(model, key("block", score_type=ScoreType.PROBABILITY), (1,))
    output = probability.run([item(image, 3)], 1)[0]
    logit_maps = np.stack([tape_grad_cam(model, "block", image, index) for index in range(CLASSES)])
    p = output.probabilities.astype(np.float64)
    expected = p[3] * (logit_maps[3] - np.einsum("c,chw->hw", p, logit_maps))
    assert output.scores[0] == pytest.approx(p[3], rel=1e-5)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(output.maps[0][0], expected, rtol=1e-3, atol=1e-4 * scale)


def test_several_layers_are_explained_in_one_pass(model: LoadedModel) -> None:
    """Each layer's map equals its map alone."""
    together = compiled(model, "block", (1,), "conv2", "relu1")
    image = pictures(1)[0]
    output = together.run([item(image, 2, 5)], 1)[0]
    for layer, maps in zip(("block", "conv2", "relu1"), output.maps, strict=True):
        alone = compiled(model, layer, (1,)).run([item(image, 2, 5)], 1)[0].maps[0]
        np.testing.assert_allclose(maps, alone, rtol=RTOL, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_compiled_as_it_is_defined(model: LoadedModel, method: Method) -> None:
    """The graph gives the method the true activation and gradient of its score, in float32."""
    image = pictures(1)[0]
    graph = compile_key(model, key("conv3", method=method), (1,))
    (actual,) = graph.run([item(image, 2)], 1)[0].maps[0]
    pixels = tf.constant((image[None].astype(np.float32) - 127) / 128)
    with tf.GradientTape() as tape:
        (activation,), logits = model.network.compute(pixels, ["conv3"])
        score = tf.tensordot(logits[0], np.float32(coefficients(method, logits[0], 2)), 1)
    expected = METHODS[method](activation, tape.gradient(score, activation))[0]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("score_type", ScoreType)
def test_finer_cam_subtracts_the_similar_classes(model: LoadedModel, score_type: ScoreType) -> None:
    """Score and map are those of the class, less those of the nearest or the named classes."""
    image = pictures(1)[0]
    plain = compile_key(model, key("conv3", score_type=score_type), (1,))
    asked = key("conv3", method=Method.FINER_CAM, score_type=score_type)
    targets = [GraphTarget(by_rank(0)), GraphTarget(3), GraphTarget(4, against=1)]
    output = compile_key(model, asked, (1,)).run([GraphItem(image, targets)], 1)[0]
    halves = [plain.run([item(image, *some)], 1)[0] for some in ((0, 1, 2), (3, 4, 5))]
    maps = np.concatenate([half.maps[0] for half in halves])
    scores = np.concatenate([half.scores for half in halves])
    named = np.eye(CLASSES)[4] - 0.6 * np.eye(CLASSES)[1]
    best = int(output.logits.argmax())
    found = [coefficients(Method.FINER_CAM, output.logits, index) for index in (best, 3)]
    counts = np.stack([*found, named])
    assert output.classes.tolist() == [best, 3, 4]
    np.testing.assert_allclose(output.scores, counts @ scores, rtol=RTOL, atol=1e-5)
    expected = np.tensordot(counts, maps, axes=1)
    np.testing.assert_allclose(output.maps[0], expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_finer_cam_of_two_classes_compares_them() -> None:
    """A model of fewer than four classes has fewer similar ones."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="conv")(inputs))
    network = keras.Model(inputs, keras.layers.Dense(2)(x))
    labels = ClassLabels([ClassLabel("no"), ClassLabel("yes")])
    model = LoadedModel("two", KerasNetwork(network), Preprocessing.LITE, labels, "random", True)
    graph = compile_key(model, key("conv", method=Method.FINER_CAM), (1,))
    output = graph.run([item(np.ones((8, 8, 3), np.uint8), 0, 1)], 1)[0]
    no, yes = output.logits
    np.testing.assert_allclose(output.scores, [no - 0.6 * yes, yes - 0.6 * no], rtol=1e-5)


@pytest.mark.parametrize("compiler", [Compiler.TENSORFLOW, Compiler.XLA])
def test_eigen_cam_needs_no_gradient(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, compiler: Compiler
) -> None:
    """No gradient is computed; all classes have their scores, and the same map."""
    monkeypatch.setattr(tf, "gradients", None)
    image = pictures(1)[0]
    asked = key("conv3", "block", method=Method.EIGEN_CAM)
    graph = ExplanationGraph(model, asked, CompilationCounter())
    output = compile_graph(graph, (1,), compiler).run([item(image, by_rank(0), 3)], 1)[0]
    assert output.classes.tolist() == [output.logits.argmax(), 3]
    np.testing.assert_array_equal(output.scores, output.logits[output.classes])
    for first, second in output.maps:
        np.testing.assert_array_equal(first, second)
        assert first.max() > 0


def test_perturbed_images_are_float_and_in_the_background(
    model: LoadedModel, graph: CompiledGraph
) -> None:
    """The same pixels as float32 give the same answer; pixels themselves can be explained."""
    image = pictures(1)[0]
    perturbed = compile_key(model, dataclasses.replace(key("block"), perturbed=True), (1,))
    assert perturbed.background
    assert not graph.background
    as_float = perturbed.run([item(image.astype(np.float32), 2)], 1)[0]
    as_bytes = graph.run([item(image, 2)], 1)[0]
    np.testing.assert_allclose(as_float.maps[0], as_bytes.maps[0], rtol=RTOL, atol=1e-6)
    pixels = dataclasses.replace(key(PIXELS, method=Method.HIRES_CAM), perturbed=True)
    by_pixel = compile_key(model, pixels, (1,))
    (attribution,) = by_pixel.run([item(image.astype(np.float32), 2)], 1)[0].maps[0]
    assert attribution.shape == (SIZE, SIZE)
    assert np.abs(attribution).max() > 0


def test_the_strongest_channels_are_those_that_vary(model: LoadedModel) -> None:
    """Score-CAM's channels are the layer's own, by their standard deviation."""
    image = pictures(1)[0]
    strongest = dataclasses.replace(key("block"), channel_count=3)
    graph = compile_key(model, strongest, (1,))
    (channels,) = graph.run([item(image)], 1)[0].maps
    (activation,), _ = model.network.compute(
        tf.constant((image[None].astype(np.float32) - 127) / 128), ["block"]
    )
    by_channel = activation.numpy()[0].transpose(2, 0, 1)
    order = np.argsort(-by_channel.std(axis=(1, 2)))[:3]
    np.testing.assert_allclose(channels, by_channel[order], rtol=RTOL, atol=1e-4)


def test_no_targets_mean_no_maps(graph: CompiledGraph) -> None:
    """A request without targets is predicted."""
    output = graph.run([item(pictures(1)[0])], 1)[0]
    assert output.maps[0].shape == (0, SIZE // 2, SIZE // 2)
    assert output.classes.shape == (0,)


def test_nothing_is_traced_after_compiling(model: LoadedModel) -> None:
    """No run traces a function."""
    counter = CompilationCounter()
    graph = compile_graph(ExplanationGraph(model, key("block"), counter), (1, 4), Compiler.XLA)
    assert counter.count == 2
    images = pictures(4)
    for count in (1, 2, 3, 4):
        items = [item(image, *range(count % 3)) for image in images[:count]]
        graph.run(items, 1 if count == 1 else 4)
    assert counter.count == 2


def test_more_slots_than_classes_are_fine() -> None:
    """A model of two classes works with the default number of targets."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    labels = ClassLabels([ClassLabel("no"), ClassLabel("yes")])
    model = LoadedModel("two", KerasNetwork(network), Preprocessing.LITE, labels, "random", True)
    graph = compiled(model, "conv", (1,))
    output = graph.run([item(np.zeros((8, 8, 3), np.uint8), by_rank(0), by_rank(1))], 1)[0]
    assert sorted(output.classes.tolist()) == [0, 1]


def test_caffe_preprocessing_is_keras_own() -> None:
    """ResNet50's inputs are scaled as keras.applications scales them."""
    images = pictures(2)
    expected = keras.applications.resnet.preprocess_input(images.astype(np.float32))
    np.testing.assert_allclose(preprocess(images, Preprocessing.CAFFE), expected, atol=1e-4)
