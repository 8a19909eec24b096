"""ResNet50 in PyTorch, as the bundle's graphs compute it, and three ways to explain with it.

Batch normalisations are folded into the convolutions, as in the server's graphs. The weights are
random: speed does not depend on them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gpu_check.resnet50 import CLASSES, INPUT_SIZE, STAGES

TARGETS = 5
# Keras' preprocessing "caffe", for RGB; the order of the channels is a part of the weights.
_MEAN = (123.68, 116.779, 103.939)
# Keeps activations of random weights from growing with the depth.
_GAIN = 0.7

Explain = Callable[[Any], Any]
"""Takes uint8 images (B, H, W, 3) on the device; returns a tuple of tensors there."""


class Block(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(channels, 4 * width, 1, stride) if projects else nn.Identity()
        self.first = nn.Conv2d(channels, width, 1, stride)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, 4 * width, 1)

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.second(functional.relu(self.first(x))))
        return functional.relu(self.third(y) + self.shortcut(x))


class ResNet50(nn.Module):
    """The network: ``features`` (B, 2048, 7, 7) of preprocessed images, and a ``head``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, padding=3)
        blocks, channels = [], 64
        for count, width, stride in STAGES:
            for number in range(count):
                is_first = number == 0
                of_block = stride if is_first else 1
                blocks.append(Block(channels, width, of_block, projects=is_first))
                channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, CLASSES)

    def features(self, x: Any) -> Any:
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2, padding=1)
        return self.blocks(x)

    def forward(self, x: Any) -> Any:
        return self.head(self.features(x).mean((2, 3)))


def build(device: str, dtype: Any) -> ResNet50:
    """Makes the network, channels last."""
    torch.manual_seed(0)
    model = ResNet50().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight).mul_(_GAIN)
    return model.to(device=device, dtype=dtype, memory_format=torch.channels_last)


def images(batch_size: int, device: str) -> Any:
    """Makes random images, uint8 (B, 224, 224, 3)."""
    shape = (batch_size, INPUT_SIZE, INPUT_SIZE, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)


def closed_form(model: ResNet50) -> Explain:
    """Logits, probabilities and the maps of the top classes, without a backward pass.

    The gradient of a logit at the last layer is the dense layer's row over the number of positions.
    """
    prepare = _preparation(model)

    def explain(pixels: Any) -> Any:
        with torch.no_grad():
            activation = model.features(prepare(pixels))
            logits = model.head(activation.mean((2, 3))).float()
            rows = model.head.weight[logits.topk(TARGETS).indices]
            maps = torch.einsum("btk,bkhw->bthw", rows, activation).float()
            return logits, torch.softmax(logits, 1), maps / activation[0, 0].numel()

    return explain


def gradient_at_layer(model: ResNet50) -> Explain:
    """Logits, probabilities and the map of the top class, by autograd from the layer on."""
    prepare = _preparation(model)

    def explain(pixels: Any) -> Any:
        with torch.no_grad():
            activation = model.features(prepare(pixels))
        activation.requires_grad_(True)
        logits = model.head(activation.mean((2, 3)))
        (gradient,) = torch.autograd.grad(logits.max(1).values.sum(), activation)
        return logits, torch.softmax(logits, 1), _weighted(gradient, activation)

    return explain


def backward_through_all(model: ResNet50) -> Explain:
    """The same by a backward pass to the pixels, as libraries of explanations do it by hooks.

    They leave the parameters' gradients on; only the images' gradient is computed here, which
    takes less time.
    """
    prepare = _preparation(model)

    def explain(pixels: Any) -> Any:
        activation = model.features(prepare(pixels).requires_grad_(True))
        activation.retain_grad()
        logits = model.head(activation.mean((2, 3)))
        logits.max(1).values.sum().backward()
        return logits, torch.softmax(logits, 1), _weighted(activation.grad, activation)

    return explain


def _preparation(model: ResNet50) -> Explain:
    parameter = model.stem.weight
    mean = torch.tensor(_MEAN, device=parameter.device)[:, None, None]

    def prepare(pixels: Any) -> Any:
        prepared = (pixels.permute(0, 3, 1, 2).float() - mean).to(parameter.dtype)
        return prepared.contiguous(memory_format=torch.channels_last)

    return prepare


def _weighted(gradient: Any, activation: Any) -> Any:
    weights = gradient.mean((2, 3), keepdim=True)
    return functional.relu((weights * activation).sum(1))
