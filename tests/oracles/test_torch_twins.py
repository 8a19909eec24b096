"""Explanations against PyTorch twins, which share the weights and no code.

Grad-CAM comes from captum; the other methods from torch's activations and gradients by the
NumPy reference. The twins compute in float64: in float32 two frameworks fall on different
sides of a ReLU6's kink now and then, and their gradients at early layers differ by percents.
"""

import importlib
import importlib.util
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

from gradcam_server.methods import METHODS
from gradcam_server.models import efficientnet_lite0
from gradcam_server.models.torch_checkpoint import read_torch_checkpoint
from gradcam_server.requests import Method
from oracles import torch_resnet50
from oracles.adapter import explain
from oracles.reference import reference

Array = NDArray[Any]

NAMES = ("cat", "espresso", "astronaut")
TOP = 3
EFFICIENTNET_LAYERS = ("top_activation", "block5c_add", "block2b_add")
# Grad-CAM++ has a pole where A may be negative: there it is rounding error in any framework.
POSITIVE_LAYERS = ("top_activation", "block5c_activation", "block2b_activation")
RESNET_LAYERS = ("conv5_block3_out", "conv4_block6_out", "conv4_block3_2_relu")
REST = tuple(method for method in METHODS if method is not Method.GRAD_CAM)


@pytest.fixture(scope="module")
def pixels(images: Path) -> Array:
    """float32 RGB, shape (3, 224, 224, 3)."""
    opened = (Image.open(images / f"{name}.jpg").convert("RGB") for name in NAMES)
    resized = (one.resize((224, 224), Image.Resampling.BILINEAR) for one in opened)
    return np.stack([np.asarray(one, np.float32) for one in resized])


class Pair:
    """A Keras model and its twin on the same images."""

    def __init__(self, model: keras.Model, twin: Any, inputs: Array) -> None:
        self.model, self.twin, self.inputs = model, twin.double().eval(), inputs
        self.tensor = torch.from_numpy(inputs.transpose(0, 3, 1, 2).astype(np.float64))
        with torch.no_grad():
            self.logits = self.twin(self.tensor).numpy()
        self.classes = np.argsort(-self.logits, axis=1)[:, :TOP]
        self._gradients: dict[str, tuple[Array, list[Array]]] = {}

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

    def torch_gradients(self, layer: str) -> tuple[Array, list[Array]]:
        """A (B, h, w, K), and g of each slot's classes."""
        if layer not in self._gradients:
            self._gradients[layer] = self._torch_gradients(layer)
        return self._gradients[layer]

    def _torch_gradients(self, layer: str) -> tuple[Array, list[Array]]:
        module, at_input = self.module(layer)
        seen: list[Any] = []
        hook = (
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            if at_input
            else module.register_forward_hook(lambda _, __, output: seen.append(output))
        )
        logits = self.twin(self.tensor)
        hook.remove()
        (activation,) = seen
        gradients = []
        for slot in range(TOP):
            score = logits.gather(1, torch.from_numpy(self.classes[:, slot : slot + 1].copy()))
            (gradient,) = torch.autograd.grad(score.sum(), activation, retain_graph=True)
            gradients.append(gradient.numpy().transpose(0, 2, 3, 1))
        return activation.detach().numpy().transpose(0, 2, 3, 1), gradients

    def expected(self, layer: str, method: Method) -> Array:
        """The method's definition on the twin's A and g, shape (B, T, h, w)."""
        activation, gradients = self.torch_gradients(layer)
        return np.stack([reference(method, activation, one) for one in gradients], axis=1)

    def ours(self, layer: str, method: Method) -> Array:
        return explain(self.model, layer, method, self.inputs, self.classes)


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
        block = self.twin._blocks[{"block5c": 10, "block2b": 2}[layer.split("_")[0]]]
        return (block._project_conv, True) if layer.endswith("activation") else (block, False)


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
    return EfficientNetPair(model, twin, (pixels - 127) / 128)


@pytest.fixture(scope="module")
def resnet(pixels: Array) -> Pair:
    """Random weights, with BatchNorm statistics as a training might leave them."""
    keras.utils.set_random_seed(11)
    model = keras.applications.ResNet50(weights=None, classifier_activation=None)
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
    return ResNetPair(model, torch_resnet50.twin_of(model), inputs.copy())


def assert_agrees(ours: Array, theirs: Array) -> None:
    """The same weights: rtol 1e-3, atol 1e-5 of each map's largest value."""
    assert ours.shape == theirs.shape
    largest = np.abs(theirs).max(axis=(-2, -1), keepdims=True)
    assert largest.min() > 0
    worst = (np.abs(ours - theirs) / (1e-3 * np.abs(theirs) + 1e-5 * largest)).max()
    print(f"largest difference {(np.abs(ours - theirs) / largest).max():.1e} of the maximum")
    assert worst <= 1, f"{worst:.2f} times the tolerance"


@pytest.mark.parametrize("layer", EFFICIENTNET_LAYERS)
def test_efficientnet_grad_cam_is_captums(efficientnet: Pair, layer: str) -> None:
    """With trained weights, signed Grad-CAM of the top three classes is captum's."""
    assert_agrees(efficientnet.ours(layer, Method.GRAD_CAM), efficientnet.captum(layer))


@pytest.mark.parametrize("layer", RESNET_LAYERS)
def test_resnet_grad_cam_is_captums(resnet: Pair, layer: str) -> None:
    """At the end, at a block's end and in mid-block, signed Grad-CAM is captum's."""
    assert_agrees(resnet.ours(layer, Method.GRAD_CAM), resnet.captum(layer))


@pytest.mark.parametrize("name", ["efficientnet", "resnet"])
def test_logits_are_the_twins(name: str, request: pytest.FixtureRequest) -> None:
    """Each twin is the network as Keras has it: the same logits, which depend on the image."""
    pair: Pair = request.getfixturevalue(name)
    ours = np.asarray(pair.model(pair.inputs, training=False))
    largest = np.abs(pair.logits).max()
    np.testing.assert_allclose(ours, pair.logits, rtol=1e-3, atol=1e-5 * largest)
    assert np.ptp(pair.logits, axis=0).max() > 1e-2 * largest


@pytest.mark.parametrize("place", range(3), ids=["late", "middle", "early"])
@pytest.mark.parametrize("method", REST)
def test_efficientnet_maps_follow_from_torchs_gradients(
    efficientnet: Pair, method: Method, place: int
) -> None:
    """Every other method is its definition applied to torch's activations and gradients."""
    positive = method is Method.GRAD_CAM_PLUS_PLUS
    layer = (POSITIVE_LAYERS if positive else EFFICIENTNET_LAYERS)[place]
    assert_agrees(efficientnet.ours(layer, method), efficientnet.expected(layer, method))


@pytest.mark.parametrize("layer", RESNET_LAYERS[1:])
@pytest.mark.parametrize("method", REST)
def test_resnet_maps_follow_from_torchs_gradients(resnet: Pair, method: Method, layer: str) -> None:
    """As with EfficientNet, on a network with biases, shortcuts and random statistics."""
    assert_agrees(resnet.ours(layer, method), resnet.expected(layer, method))


@pytest.mark.parametrize(
    ("pair", "layer"), [("efficientnet", "top_activation"), ("resnet", "conv5_block3_out")]
)
def test_hires_cam_is_complete(pair: str, layer: str, request: pytest.FixtureRequest) -> None:
    """At the last block the signed map sums to the logit less its bias."""
    one: Pair = request.getfixturevalue(pair)
    bias = one.model.layers[-1].bias.numpy()[one.classes]
    logits = np.take_along_axis(one.logits, one.classes, axis=1)
    total = one.ours(layer, Method.HIRES_CAM).sum(axis=(2, 3), dtype=float)
    np.testing.assert_allclose(total, logits - bias, rtol=1e-4)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pytorch_grad_cam", "torchvision"))),
    reason="pytorch-grad-cam needs torchvision, which has no CPU build on this index",
)
@pytest.mark.parametrize(
    ("method", "name"),
    [
        (Method.GRAD_CAM, "GradCAM"),
        (Method.HIRES_CAM, "HiResCAM"),
        (Method.X_GRAD_CAM, "XGradCAM"),
        (Method.LAYER_CAM, "LayerCAM"),
        (Method.ELEMENTWISE_GRAD_CAM, "GradCAMElementWise"),
    ],
)
def test_maps_are_pytorch_grad_cams(resnet: Pair, method: Method, name: str) -> None:
    """Where pytorch-grad-cam is installed: its maps before ReLU and normalisation are ours."""
    library: Any = importlib.import_module("pytorch_grad_cam")
    layer = "conv4_block6_out"
    module, _ = resnet.module(layer)
    activation, gradients = resnet.torch_gradients(layer)
    maps = [
        getattr(library, name)(resnet.twin, [module]).get_cam_image(
            resnet.tensor,
            module,
            None,
            activation.transpose(0, 3, 1, 2),
            gradient.transpose(0, 3, 1, 2),
            False,
        )
        for gradient in gradients
    ]
    ours = resnet.ours(layer, method)
    assert_agrees(ours, np.stack(maps, axis=1))
