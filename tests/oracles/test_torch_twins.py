"""Explanations against PyTorch twins, which share the weights and no code.

Grad-CAM comes from captum; the other methods from torch's activations and gradients by the
NumPy reference. EfficientNet's twin computes in float64, and so does ours at an early layer.
In float32 an activation falls on the other side of a ReLU6's kink now and then, as the order of
summation has it: at block2b_add the map is 2e-6 of its maximum away by TensorFlow's executor,
and 7e-4 by XLA.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from PIL import Image

from gradcam_server.domain.requests import Method
from gradcam_server.methods.one_pass import METHODS
from gradcam_server.models import efficientnet_lite0
from gradcam_server.models.torch_checkpoint import read_torch_checkpoint
from oracles import torch_resnet50
from oracles.adapter import explain
from oracles.precise import in_float64
from oracles.reference import coefficients, reference

Array = NDArray[Any]

NAMES = ("cat", "espresso")
TOP = 2
EFFICIENTNET_LAYERS, EARLY_LAYER = ("top_activation", "block5c_add"), "block2b_add"
RESNET_LAYERS = ("conv5_block3_out", "conv4_block6_out", "conv4_block3_2_relu")
REST = tuple(method for method in METHODS if method is not Method.GRAD_CAM)


@pytest.fixture(scope="module")
def pixels(images: Path) -> Array:
    """float32 RGB, shape (2, 224, 224, 3)."""
    opened = (Image.open(images / f"{name}.jpg").convert("RGB") for name in NAMES)
    resized = (one.resize((224, 224), Image.Resampling.BILINEAR) for one in opened)
    return np.stack([np.asarray(one, np.float32) for one in resized])


class Pair:
    """A Keras model and its twin on the same images."""

    def __init__(self, model: keras.Model, twin: Any, inputs: Array) -> None:
        self.model, self.twin, self.inputs = model, twin.eval(), inputs
        self.tensor = torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy())
        self.tensor = self.tensor.to(next(twin.parameters()).dtype)
        with torch.no_grad():
            self.logits = self.twin(self.tensor).numpy()
        self.classes = np.argsort(-self.logits, axis=1)[:, :TOP]
        self._gradients: dict[tuple[str, bytes], tuple[Array, Array]] = {}

    def module(self, layer: str) -> tuple[Any, bool]:
        """The module of a layer, and whether the layer is its input."""
        raise NotImplementedError

    def captum(self, layer: str) -> Array:
        """Signed Grad-CAM maps, shape (B, T, h, w)."""
        module, at_input = self.module(layer)
        maps = [
            LayerGradCam(self.twin, module)
            .attribute(
                self.tensor,
                target=torch.from_numpy(self.classes[:, slot].copy()),
                attribute_to_layer_input=at_input,
                relu_attributions=False,
                attr_dim_summation=True,
            )
            .detach()
            .numpy()[:, 0]
            for slot in range(TOP)
        ]
        return np.stack(maps, axis=1)

    def gradients(self, layer: str, method: Method) -> tuple[Array, Array]:
        """A, and g of the method's score of the top class, shape (B, h, w, K)."""
        top = zip(self.logits, self.classes[:, 0], strict=True)
        weights = np.stack([coefficients(method, logits, index) for logits, index in top])
        asked = layer, weights.tobytes()
        if asked not in self._gradients:
            module, at_input = self.module(layer)
            seen: list[Any] = []
            hook = (
                module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
                if at_input
                else module.register_forward_hook(lambda _, __, output: seen.append(output))
            )
            score = (self.twin(self.tensor) * torch.from_numpy(weights)).sum()
            hook.remove()
            (gradient,) = torch.autograd.grad(score, seen)
            both = (one.detach().numpy().transpose(0, 2, 3, 1) for one in (*seen, gradient))
            self._gradients[asked] = (next(both), next(both))
        return self._gradients[asked]

    def ours(self, method: Method, *layers: str, top: int = TOP) -> list[Array]:
        """For each layer, our signed maps, shape (B, top, h, w)."""
        return list(explain(self.model, layers, method, self.inputs, self.classes[:, :top]))


class Depthwise(torch.nn.Module):
    """A depthwise convolution as a sum of shifted images: torch's own crawls in float64."""

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.padding, self.weight = convolution.static_padding, convolution.weight
        (self.stride, _), (self.kernel, _) = convolution.stride, convolution.kernel_size

    def forward(self, x: Any) -> Any:
        x = self.padding(x)
        height, width = ((size - self.kernel) // self.stride + 1 for size in x.shape[2:])
        total = 0.0
        for row in range(self.kernel):
            for column in range(self.kernel):
                shifted = x[:, :, row :: self.stride, column :: self.stride]
                weight = self.weight[None, :, 0, row, column, None, None]
                total = total + weight * shifted[:, :, :height, :width]
        return total


class EfficientNetPair(Pair):
    def module(self, layer: str) -> tuple[Any, bool]:
        if layer == "top_activation":
            return self.twin._avg_pooling, True
        block, part = layer.split("_")
        found = self.twin._blocks[{"block5c": 10, "block2b": 2}[block]]
        return (found._project_conv, True) if part == "activation" else (found, False)


class ResNetPair(Pair):
    def module(self, layer: str) -> tuple[Any, bool]:
        return torch_resnet50.module(self.twin, layer), False


@pytest.fixture(scope="module")
def efficientnet(pixels: Array) -> Pair:
    """The trained weights."""
    path = efficientnet_lite0.default_checkpoint()
    model = efficientnet_lite0.build(read_torch_checkpoint(path))
    twin = EfficientNet.from_name("efficientnet-lite0")
    twin.load_state_dict(torch.load(path, weights_only=True))
    for block in twin._blocks:
        block._depthwise_conv = Depthwise(block._depthwise_conv)
    return EfficientNetPair(model, twin.double(), (pixels - 127) / 128)


@pytest.fixture
def precise() -> Iterator[keras.Model]:
    """EfficientNet with the trained weights, computing in float64."""
    with in_float64():
        path = efficientnet_lite0.default_checkpoint()
        yield efficientnet_lite0.build(read_torch_checkpoint(path))


@pytest.fixture(scope="module")
def resnet(pixels: Array) -> Iterator[Pair]:
    """Random weights, with BatchNorm statistics as a training might leave them; in float64.

    In float32 the order of operations decides which way some of its ReLUs fall. Half the size
    costs a quarter, and random weights recognise nothing at any size.
    """
    with in_float64():
        yield build_resnet(pixels[:, ::2, ::2])


def build_resnet(pixels: Array) -> Pair:
    keras.utils.set_random_seed(11)
    model = keras.applications.ResNet50(
        weights=None, classifier_activation=None, input_shape=pixels.shape[1:]
    )
    generator = np.random.default_rng(11)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Small in the branch that a block adds, so that the sum does not explode.
            gain = 0.3 if layer.name.endswith("3_bn") else 1.0
            size = layer.gamma.shape
            layer.set_weights(
                [
                    gain * generator.uniform(0.5, 1.5, size),
                    generator.normal(0, 0.2, size),
                    generator.normal(0, 0.2, size),
                    generator.uniform(0.5, 2, size),
                ]
            )
        elif layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, generator.normal(0, 0.1, bias.shape)])
    inputs = pixels[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32)
    return ResNetPair(model, torch_resnet50.twin_of(model).double(), inputs.copy())


def assert_agrees(ours: Array, theirs: Array) -> None:
    """The same weights: rtol 1e-3, atol 1e-5 of each map's largest value."""
    assert ours.shape == theirs.shape
    largest = np.abs(theirs).max(axis=(-2, -1), keepdims=True)
    assert largest.min() > 0
    worst = (np.abs(ours - theirs) / (1e-3 * np.abs(theirs) + 1e-5 * largest)).max()
    difference = (np.abs(ours - theirs) / largest).max()
    print(f"largest difference {difference:.1e} of the maximum, {worst:.2g} of the tolerance")
    assert worst <= 1, f"{worst:.2f} times the tolerance"


def test_efficientnet_grad_cam_is_captums(efficientnet: Pair) -> None:
    """With trained weights, signed Grad-CAM of the top two classes is captum's."""
    maps = efficientnet.ours(Method.GRAD_CAM, *EFFICIENTNET_LAYERS)
    for layer, ours in zip(EFFICIENTNET_LAYERS, maps, strict=True):
        assert_agrees(ours, efficientnet.captum(layer))


def test_efficientnet_grad_cam_at_an_early_layer_is_captums(
    efficientnet: Pair, precise: keras.Model
) -> None:
    """Ten blocks earlier, signed Grad-CAM of the network in float64 is captum's too."""
    (ours,) = explain(
        precise, (EARLY_LAYER,), Method.GRAD_CAM, efficientnet.inputs, efficientnet.classes
    )
    assert_agrees(ours, efficientnet.captum(EARLY_LAYER))


def test_resnet_grad_cam_is_captums(resnet: Pair) -> None:
    """At the end, at a block's end and in mid-block, signed Grad-CAM is captum's."""
    maps = resnet.ours(Method.GRAD_CAM, *RESNET_LAYERS)
    for layer, ours in zip(RESNET_LAYERS, maps, strict=True):
        assert_agrees(ours, resnet.captum(layer))


@pytest.mark.parametrize("name", ["efficientnet", "resnet"])
def test_logits_are_the_twins(name: str, request: pytest.FixtureRequest) -> None:
    """Each twin has the logits of the Keras network, and they depend on the image."""
    pair: Pair = request.getfixturevalue(name)
    ours = np.asarray(pair.model(pair.inputs, training=False))
    largest = np.abs(pair.logits).max()
    np.testing.assert_allclose(ours, pair.logits, rtol=1e-3, atol=1e-5 * largest)
    assert np.ptp(pair.logits, axis=0).max() > 1e-2 * largest


# A is nowhere negative there: where it may be, Grad-CAM++ has a pole, and is rounding error.
@pytest.mark.parametrize(
    ("name", "layer"), [("efficientnet", "block5c_activation"), ("resnet", "conv4_block6_out")]
)
@pytest.mark.parametrize("method", REST)
def test_maps_follow_from_torchs_gradients(
    name: str, layer: str, method: Method, request: pytest.FixtureRequest
) -> None:
    """Every other method equals its definition applied to torch's activations and gradients."""
    pair: Pair = request.getfixturevalue(name)
    (ours,) = pair.ours(method, layer, top=1)
    assert_agrees(ours[:, 0], reference(method, *pair.gradients(layer, method)))


def test_hires_cam_is_complete(resnet: Pair) -> None:
    """At the last block the signed map sums to the logit less its bias."""
    bias = resnet.model.layers[-1].bias.numpy()[resnet.classes]
    logits = np.take_along_axis(resnet.logits, resnet.classes, axis=1)
    (maps,) = resnet.ours(Method.HIRES_CAM, "conv5_block3_out")
    np.testing.assert_allclose(maps.sum(axis=(2, 3), dtype=float), logits - bias, rtol=1e-4)
