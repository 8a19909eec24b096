"""The peer in PyTorch is the same network, and its ways agree."""

from typing import Any

import pytest
import torch
from torch import nn

from gpu_check import resnet50, torch_network
from oracles.torch_resnet50 import ResNet50 as Twin


def count(module: nn.Module) -> tuple[int, int, int]:
    """Counts flop, values read and written, and weights of the products, by running the network."""
    found = [0, 0, 0]

    def note(layer: Any, inputs: Any, output: Any) -> None:
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        found[0] += 2 * layer.weight.numel() * positions
        found[1] += inputs[0].numel() + output.numel()
        found[2] += layer.weight.numel()

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(note)
    module(torch.empty(1, 3, 224, 224, device="meta"))
    return found[0], found[1], found[2]


def test_the_work_is_that_of_keras_resnet50() -> None:
    """The numbers of the roofline, and the peer's network, are those of a twin of Keras' model."""
    with torch.device("meta"):
        twin, ours = Twin(resnet50.CLASSES).eval(), torch_network.ResNet50().eval()
    flop, _, weights = counted = count(twin)
    assert count(ours)[::2] == counted[::2]
    assert resnet50.flop() == flop
    assert sum(product.weights for product in resnet50.products()) == weights
    # Neither counts the padding in front of the first convolution.
    assert sum(product.values for product in resnet50.products()) == count(ours)[1]
    assert resnet50.moved_bytes(2, 4) == pytest.approx(4 * (count(ours)[1] + weights / 2))


def test_the_lower_of_two_bounds_counts() -> None:
    """A device without memory speed is bound by bytes, and larger batches share the weights."""
    bounds = resnet50.max_images_per_s(1, 2, 1e15, 1e9)
    assert bounds["bytes"] < bounds["arithmetic"]
    assert resnet50.max_images_per_s(128, 2, 1e15, 1e9)["bytes"] > bounds["bytes"]


def test_all_ways_of_torch_give_the_same_map() -> None:
    """The closed form, autograd at the layer and a backward pass through all agree."""
    torch.set_num_threads(1)
    model = torch_network.build("cpu", torch.float32)
    pixels = torch_network.images(1, "cpu")
    logits, probabilities, maps = torch_network.closed_form(model)(pixels)
    assert maps.shape == (1, torch_network.TARGETS, 7, 7)
    assert float(maps.abs().max()) > 0
    for way in (torch_network.gradient_at_layer, torch_network.backward_through_all):
        found = way(model)(pixels)
        torch.testing.assert_close(found[0].detach(), logits, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[1].detach(), probabilities, rtol=1e-3, atol=1e-5)
        largest = float(maps.abs().max())
        torch.testing.assert_close(
            found[2].detach(), torch.relu(maps[:, 0]), rtol=1e-3, atol=1e-3 * largest
        )
