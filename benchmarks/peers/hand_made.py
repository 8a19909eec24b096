"""Grad-CAM as a user would write it without the server: in torch, or exported in closed form.

``Autograd`` is what libraries and tutorials do: the score of the best class is propagated backward
to an activation. The closed form needs no backward pass: at the last layer before the global
pooling the gradient of a logit is the dense layer's row over the number of positions. That holds
at this layer only; the server's graph works at any layer.

Usage: PYTHONPATH=tests:benchmarks python -m peers.hand_made MODEL WEIGHTS FOLDER
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.model_spec import ModelSpec

INPUT_SIZE = (224, 224)
MEAN_BGR = (103.939, 116.779, 123.68)
WEIGHTS, ONNX = "twin.pt", "model.onnx"

Maps = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Probabilities (B, classes) and signed maps (B, h, w)."""


@dataclass(frozen=True)
class Twin:
    """A network in torch.

    Attributes:
        module: The network.
        prepare: Converts uint8 RGB (B, H, W, 3) to its input.
        features: Computes the activations (B, K, h, w) before the global pooling.
        head: The dense layer after the pooling.
    """

    module: Any
    prepare: Callable[[Any], Any]
    features: Callable[[Any], Any]
    head: Any


def write_weights(spec: ModelSpec, path: Path) -> None:
    """Writes a built-in model's weights for the twin."""
    import torch

    if spec.source == "resnet50":
        from gradcam_server.models.built_in import build
        from oracles.torch_resnet50 import twin_of

        torch.save(twin_of(build(spec)[0]).state_dict(), path)
    else:
        from gradcam_server.models import efficientnet_lite0

        torch.save(torch.load(efficientnet_lite0.default_checkpoint(), weights_only=True), path)


def load_twin(weights: Path) -> Twin:
    """Loads the network whose weights were written."""
    import torch

    state = torch.load(weights, weights_only=True)
    if "predictions.bias" in state:
        from oracles.torch_resnet50 import ResNet50

        resnet = _frozen(ResNet50(len(state["predictions.bias"])), state)
        return Twin(resnet, caffe, resnet.features, resnet.predictions)
    from efficientnet_lite_pytorch import EfficientNet

    lite = _frozen(EfficientNet.from_name("efficientnet-lite0"), state)
    return Twin(lite, scale_lite, lite.extract_features, lite._fc)


def _frozen(module: Any, state: Any) -> Any:
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def caffe(images: Any) -> Any:
    """Prepares as ResNet50 needs it: BGR less the means."""
    import torch

    pixels = images.flip(-1).permute(0, 3, 1, 2).to(torch.float32)
    return pixels - torch.tensor(MEAN_BGR, device=images.device)[:, None, None]


def scale_lite(images: Any) -> Any:
    """Prepares as EfficientNet-Lite0 needs it: about -1 to 1."""
    import torch

    return (images.permute(0, 3, 1, 2).to(torch.float32) - 127.0) / 128.0


def closed_form(twin: Twin) -> Any:
    """Returns a module from images to logits, probabilities and maps, without a backward pass."""
    import torch

    class ClosedForm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = twin.module

        def forward(self, images: Any) -> Any:
            activation = twin.features(twin.prepare(images))
            logits = twin.head(activation.mean(dim=(2, 3)))
            row = twin.head.weight[logits.argmax(dim=1)]
            maps = torch.einsum("bk,bkhw->bhw", row, activation) / activation[0, 0].numel()
            return logits, torch.softmax(logits, dim=1), maps

    return ClosedForm().eval()


def export_onnx(module: Any, path: Path) -> None:
    """Exports a module for batches of any size."""
    import torch

    example = torch.zeros((2, *INPUT_SIZE, 3), dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(module, (example,), path, dynamo=True, dynamic_shapes=[batch], verbose=False)


class OnnxRuntime:
    """ONNX Runtime with the exported closed form."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = str(folder / ONNX)
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._name = self._session.get_inputs()[0].name

    def __call__(self, images: NDArray[np.uint8]) -> Maps:
        """Explains uint8 RGB (B, H, W, 3)."""
        _, probabilities, maps = self._session.run(None, {self._name: images})
        return probabilities, maps


class Autograd:
    """Eager torch, as pytorch-grad-cam and the tutorials have it, and cheaper: without hooks."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._twin = load_twin(folder / WEIGHTS)

    def __call__(self, images: NDArray[np.uint8]) -> Maps:
        """Explains uint8 RGB (B, H, W, 3)."""
        import torch

        logits, maps = by_autograd(self._twin, torch.from_numpy(images))
        return torch.softmax(logits, dim=1).numpy(), maps.numpy()


def by_autograd(twin: Twin, images: Any) -> Any:
    """Returns logits and maps; the backward pass goes only to the activation."""
    import torch

    activation = twin.features(twin.prepare(images)).requires_grad_()
    logits = twin.head(activation.mean(dim=(2, 3)))
    (gradient,) = torch.autograd.grad(logits.max(dim=1).values.sum(), activation)
    maps = (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1)
    return logits.detach(), maps.detach()


def write(spec: ModelSpec, folder: Path) -> None:
    """Writes the weights and the exported closed form into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(spec, folder / WEIGHTS)
    export_onnx(closed_form(load_twin(folder / WEIGHTS)), folder / ONNX)


if __name__ == "__main__":
    model, weights, folder = sys.argv[1:]
    write(ModelSpec(model, model, weights=weights), Path(folder))
