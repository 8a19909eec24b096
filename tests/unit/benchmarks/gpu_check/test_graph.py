"""The bare graph is measured through the product's own code."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gpu_check.graph import Effort, measure_batch_size, with_ceilings
from gpu_check.networks import Network
from gpu_check.startup import read_log
from gpu_check.weights import PREDICT, draw_weights, predict_module
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem, GraphTarget
from gradcam_server.engine.engine import Engine
from gradcam_server.exports.manifest import WEIGHTS, read_manifest
from support.tiny_stablehlo import TARGETS, to_module, write_stablehlo

EFFORT = Effort(2, 0.01, 2, 0.01, 1.0)


def predict(images: Any, _classes: Any, _against: Any, kernel: Any, bias: Any, head: Any) -> Any:
    activation = jax.nn.relu(images.astype(kernel.dtype) @ kernel[0, 0] + bias)
    logits = activation.mean((1, 2)) @ head
    return logits, jax.nn.softmax(logits)


def weights_of(folder: Path) -> dict[str, NDArray[Any]]:
    """The weights in the order of the graph's inputs."""
    weights = load_file(folder / WEIGHTS)
    return {name: weights[name] for name in read_manifest(folder).graphs[0].weights}


def true_logits(folder: Path, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The logits in float64, by NumPy."""
    kernel, bias, head = (value.astype(float) for value in weights_of(folder).values())
    return np.maximum(images @ kernel[0, 0] + bias, 0).mean((1, 2)) @ head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export as the bundle has it, with a module that predicts alone for batch size 1."""
    found = tmp_path / "tiny"
    write_stablehlo(found, (1, 4))
    draw_weights(found, 0)
    weights = weights_of(found)
    (found / predict_module(1)).write_bytes(to_module(predict, 1, weights))
    (found / PREDICT).write_text(json.dumps({"weights": list(weights)}))
    return found


@pytest.fixture
def network(folder: Path, tmp_path: Path) -> Network:
    return Network(folder, "CPU:0", tmp_path / "cache")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_measured_functions_give_the_answers_of_the_served_graph(
    network: Network, folder: Path, batch_size: int
) -> None:
    """What is timed on the device is the graph that the server runs, with all its answers."""
    assert network.batch_sizes == (1, 4)
    images, classes, against = network.arrays(batch_size)
    classes[:] = np.arange(TARGETS)
    outputs = network.explain(batch_size)(images, classes, against)
    logits, _, chosen, _, maps = jax.device_get(outputs)
    expected = true_logits(folder, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(maps) > 0
    items = [GraphItem(image, [GraphTarget(index) for index in range(3)]) for image in images]
    served = network.compiled(batch_size).run(items, batch_size)
    for row, answer in enumerate(served):
        np.testing.assert_allclose(answer.logits, logits[row], rtol=1e-6)
        np.testing.assert_array_equal(answer.classes, chosen[row][:3])
        np.testing.assert_allclose(answer.maps[0], maps[row][:3], rtol=1e-6)
    predicted = network.predict(batch_size)
    assert (predicted is None) == (batch_size == 4)
    if predicted is not None:
        alone = jax.device_get(predicted(images, classes, against)[0])
        np.testing.assert_allclose(alone, logits, rtol=1e-5)


def test_prediction_is_compared_where_the_bundle_has_it(network: Network) -> None:
    """A batch size without a module that predicts alone has a row all the same."""
    both = measure_batch_size(network, 1, EFFORT)
    alone = measure_batch_size(network, 4, EFFORT)
    assert both["explain_over_predict"]["count"] == EFFORT.rounds
    assert "explain_over_predict" not in alone
    for row in (both, alone):
        assert row["images_per_s"]["median"] > 0
        assert row["from_host_images_per_s"]["median"] > 0
        assert min(row["call_ms"], row["numpy_call_ms"], row["compile_s"]) > 0


def test_fast_products_give_the_same_answers_on_a_cpu(folder: Path) -> None:
    """The module that may round is read, and a CPU does not round."""
    try:
        network = Network(folder, "CPU:0", None, fast_products=True)
        inputs = network.arrays(1)
        logits = np.asarray(network.explain(1)(*inputs)[0])
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    expected = true_logits(folder, inputs[0])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_only_bfloat16_is_compared_with_the_ceiling_of_bfloat16() -> None:
    """The speed of bfloat16 products is no bound of float32."""
    ceilings = {"flop_per_s": 7.715946496e12, "bytes_per_s": 1e15}
    row = {"precision": "bfloat16", "batch_size": 128, "images_per_s": {"median": 500.0}}
    assert with_ceilings(row, ceilings)["share_of_max"] == pytest.approx(0.5)
    assert "share_of_max" not in with_ceilings({**row, "precision": "float32"}, ceilings)
    assert "share_of_max" not in with_ceilings(row, None)


def test_the_servers_log_tells_what_it_compiled(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of the product is understood; what is not in a log is unknown, not zero."""
    with caplog.at_level("INFO"):
        engine = Engine(ServeConfig(model=(f"tiny={folder}",), batch_sizes=(1,)))
        engine.warm_up()
    assert None not in read_log(caplog.text).values()
    assert set(read_log("Serving resnet50").values()) == {None}
    twice = (
        "Compiled 2 modules in bfloat16, and read 7 from the compilation cache\n"
        "Read resnet50, gradcam in bfloat16 and compiled it in 1.5 s; milliseconds: 1: 2.0\n"
    ) * 2
    assert read_log(twice) == {"compiled_modules": 4, "cached_modules": 14, "graphs_s": 3.0}
