"""The bare graph is measured through the product's own code."""

from pathlib import Path

import jax
import numpy as np
import pytest

from gpu_check.graph import Effort, measure_batch_size, with_ceilings
from gpu_check.networks import Network
from gpu_check.startup import read_log
from support.tiny_stablehlo import CLASSES, TARGETS, WEIGHT, write_tiny_stablehlo

EFFORT = Effort(2, 0.01, 2, 0.01, 1.0, (1, 4))


@pytest.fixture
def network(tmp_path: Path) -> Network:
    write_tiny_stablehlo(tmp_path / "tiny")
    return Network(tmp_path / "tiny", "CPU:0", tmp_path / "cache")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_measured_function_gives_the_answers_of_the_served_graph(
    network: Network, batch_size: int
) -> None:
    """What is timed on the device is the graph that the server runs, with all its answers."""
    assert network.batch_sizes == (1, 4)
    images, classes, against = network.arrays(batch_size)
    logits, _, chosen, _, maps = jax.device_get(
        network.explain(batch_size)(images, classes, against)
    )
    assert logits.shape == (batch_size, CLASSES)
    np.testing.assert_allclose(logits, images.mean((1, 2)) @ WEIGHT, rtol=1e-4, atol=1e-3)
    served = network.compiled(batch_size).run(network.items(batch_size), batch_size)
    for row, answer in enumerate(served):
        np.testing.assert_allclose(answer.logits, logits[row], rtol=1e-6)
        np.testing.assert_array_equal(answer.classes, chosen[row][:1])
        np.testing.assert_allclose(answer.maps[0], maps[row][:1], rtol=1e-6)
    assert maps.shape[1] == TARGETS


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


def test_fast_products_give_the_same_answers_on_a_cpu(tmp_path: Path) -> None:
    """The module that may round is read, and a CPU does not round."""
    write_tiny_stablehlo(tmp_path / "tiny")
    try:
        network = Network(tmp_path / "tiny", "CPU:0", None, fast_products=True)
        inputs = network.arrays(1)
        logits = np.asarray(network.explain(1)(*inputs)[0])
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    np.testing.assert_allclose(logits, inputs[0].mean((1, 2)) @ WEIGHT, rtol=1e-4, atol=1e-3)


def test_only_bfloat16_is_compared_with_the_ceiling_of_bfloat16() -> None:
    """The speed of bfloat16 products is no bound of float32."""
    ceilings = {"flop_per_s": 7.715946496e12, "bytes_per_s": 1e15}
    row = {"precision": "bfloat16", "batch_size": 128, "images_per_s": {"median": 500.0}}
    assert with_ceilings(row, ceilings)["share_of_max"] == pytest.approx(0.5)
    assert "share_of_max" not in with_ceilings({**row, "precision": "float32"}, ceilings)
    assert "share_of_max" not in with_ceilings(row, None)


def test_the_servers_log_tells_what_it_compiled(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of the product is understood; what is not in a log is unknown, not zero."""
    with caplog.at_level("INFO"):
        network.compiled(1)
    assert None not in read_log(caplog.text).values()
    assert set(read_log("Serving resnet50").values()) == {None}
    twice = (
        "Compiled 2 modules in bfloat16, and read 7 from the compilation cache\n"
        "Read resnet50, gradcam in bfloat16 and compiled it in 1.5 s; milliseconds: 1: 2.0\n"
    ) * 2
    assert read_log(twice) == {"compiled_modules": 4, "cached_modules": 14, "graphs_s": 3.0}
