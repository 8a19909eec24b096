"""ResNet50 in plain PyTorch (He et al. 2015), as Keras has it.

The stride is in a block's first 1x1 convolution, convolutions have biases, BatchNorm's
epsilon is 1.001e-5, and the padding is explicit. Modules bear the names of Keras' layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    import keras

_STAGES = ((2, 3, 64, 1), (3, 4, 128, 2), (4, 6, 256, 2), (5, 3, 512, 2))
_EPSILON = 1.001e-5


class Block(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        if projects:
            self.add_module("0_conv", nn.Conv2d(inputs, 4 * width, 1, stride))
            self.add_module("0_bn", nn.BatchNorm2d(4 * width, _EPSILON))
        self.add_module("1_conv", nn.Conv2d(inputs, width, 1, stride))
        self.add_module("1_bn", nn.BatchNorm2d(width, _EPSILON))
        self.add_module("1_relu", nn.ReLU())
        self.add_module("2_conv", nn.Conv2d(width, width, 3, padding=1))
        self.add_module("2_bn", nn.BatchNorm2d(width, _EPSILON))
        self.add_module("2_relu", nn.ReLU())
        self.add_module("3_conv", nn.Conv2d(width, 4 * width, 1))
        self.add_module("3_bn", nn.BatchNorm2d(4 * width, _EPSILON))
        self.add_module("out", nn.ReLU())

    def forward(self, x: Any) -> Any:
        parts = dict(self.named_children())
        shortcut = parts["0_bn"](parts["0_conv"](x)) if "0_conv" in parts else x
        for name in ("1_conv", "1_bn", "1_relu", "2_conv", "2_bn", "2_relu", "3_conv", "3_bn"):
            x = parts[name](x)
        return parts["out"](x + shortcut)


class ResNet50(nn.Module):
    """From preprocessed images (B, 3, 224, 224) to logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_module("conv1_conv", nn.Conv2d(3, 64, 7, 2))
        self.add_module("conv1_bn", nn.BatchNorm2d(64, _EPSILON))
        self.blocks = []
        channels = 64
        for stage, repeats, width, stride in _STAGES:
            for repeat in range(1, repeats + 1):
                first = repeat == 1
                name = f"conv{stage}_block{repeat}"
                block = Block(channels, width, stride if first else 1, projects=first)
                self.add_module(name, block)
                self.blocks.append(name)
                channels = 4 * width
        self.predictions = nn.Linear(channels, classes)

    def forward(self, x: Any) -> Any:
        return self.predictions(self.features(x).mean(dim=(2, 3)))

    def features(self, x: Any) -> Any:
        """The activations (B, 2048, 7, 7) before the head."""
        x = functional.relu(
            self.get_submodule("conv1_bn")(
                self.get_submodule("conv1_conv")(functional.pad(x, [3] * 4))
            )
        )
        x = functional.max_pool2d(functional.pad(x, [1] * 4), 3, 2)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return x


def module(twin: ResNet50, layer: str) -> nn.Module:
    """Finds the module of a Keras layer, as "conv4_block3_2_relu"."""
    if "_block" not in layer:
        return twin.get_submodule(layer)
    stage, block, part = layer.split("_", 2)
    return twin.get_submodule(f"{stage}_{block}.{part}")


def twin_of(model: keras.Model) -> ResNet50:
    """Copies a ResNet50 of ``keras.applications``, every weight once."""
    twin = ResNet50(model.output_shape[-1]).eval()
    state: dict[str, Any] = {}
    for layer in model.layers:
        if not layer.weights:
            continue
        path = next(name for name, one in twin.named_modules() if one is module(twin, layer.name))
        for variable in layer.weights:
            value = torch.from_numpy(variable.numpy().copy())
            if variable.name == "kernel":
                value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
            state[f"{path}.{_NAMES[variable.name]}"] = value
    known = {name for name in twin.state_dict() if not name.endswith("num_batches_tracked")}
    assert state.keys() == known
    twin.load_state_dict(state, strict=False)
    return twin


_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
