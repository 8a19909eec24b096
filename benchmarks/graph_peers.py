"""Runs the graph suite with peers: torch, ONNX Runtime and OpenVINO beside the server's graphs.

The peers get the same ResNet50 with the same weights, as a PyTorch twin: with autograd, as in
libraries of explanations; and exported by hand in closed form (``peers.hand_made``).

Usage: PYTHONPATH=tests:benchmarks python benchmarks/graph_peers.py [--batch-sizes 1,8]
       [--output FILE]
"""

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from numpy.typing import NDArray

from gradcam_server.bench.graph import Answer, Candidate, Run, pictures
from gradcam_server.bench.graph_run import run
from gradcam_server.bench.worker import Worker
from gradcam_server.cli.progress import open_bar
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Compiler
from peers.hand_made import (
    INPUT_SIZE,
    ONNX,
    WEIGHTS,
    by_autograd,
    closed_form,
    export_onnx,
    load_twin,
    write_weights,
)

CALIBRATION_IMAGES = 64
OPENVINO = {"float32": "openvino", "bfloat16": "openvino", "int8": "nncf"}


class Export:
    """Writes the models of the peers, in a process that ends before they are measured."""

    def write(self, spec: ModelSpec, folder: str) -> None:
        """Writes Keras' weights for the twin, and the closed form for the installed runtimes."""
        import torch

        weights = Path(folder, WEIGHTS)
        write_weights(spec, weights)
        module = closed_form(load_twin(weights))
        if is_installed("onnxruntime"):
            export_onnx(module, Path(folder, ONNX))
        if is_installed("openvino"):
            import openvino

            example = torch.zeros((2, *INPUT_SIZE, 3), dtype=torch.uint8)
            shape = (-1, *INPUT_SIZE, 3)
            converted = openvino.convert_model(module, example_input=example, input=[shape])
            openvino.save_model(converted, f"{folder}/float32.xml", compress_to_fp16=False)
            if is_installed("nncf"):
                import nncf

                images = pictures(CALIBRATION_IMAGES, INPUT_SIZE)
                calibration = nncf.Dataset([image[None] for image in images])
                quantised = nncf.quantize(converted, calibration, subset_size=len(images))
                openvino.save_model(quantised, f"{folder}/int8.xml", compress_to_fp16=False)


def is_installed(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


class Torch:
    """torch: autograd without hooks, or the closed form, eager or compiled."""

    def __init__(self, weights: str, how: str, device: str) -> None:
        import torch

        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._how = how
        self._twin = load_twin(Path(weights))
        made = self._twin.module if how == "autograd" else closed_form(self._twin)
        self._model = made.to(self._device).to(memory_format=torch.channels_last)

    def build(self, batch_size: int) -> Run:  # noqa: ARG002 - torch sees it in the images
        """Compiles, if ``how`` is ``compiled``."""
        import torch

        function: Callable[[Any], Any] = self._model
        if self._how == "autograd":
            function = partial(by_autograd, self._twin)
        elif self._how == "compiled":
            import torch._inductor.config as settings

            settings.freezing = True
            torch._dynamo.reset()
            function = torch.compile(self._model, dynamic=False)

        def run(images: NDArray[np.uint8]) -> Answer:
            given = torch.from_numpy(images).to(self._device)
            with torch.set_grad_enabled(self._how == "autograd"):
                logits, *_, maps = (tensor.detach().cpu().numpy() for tensor in function(given))
            return Answer(logits, maps)

        return run

    def device_bytes(self) -> int:
        """Returns the peak memory of the GPU."""
        import torch

        return int(torch.cuda.max_memory_allocated()) if self._device.type == "cuda" else 0


class OnnxRuntime:
    """ONNX Runtime with torch's export of the closed form."""

    def __init__(self, folder: str, device: str) -> None:
        self._path = f"{folder}/{ONNX}"
        self._provider = "CUDAExecutionProvider" if device == "gpu" else "CPUExecutionProvider"

    def build(self, batch_size: int) -> Run:
        """Optimises for the batch size."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_free_dimension_override_by_name("batch", batch_size)
        session = onnxruntime.InferenceSession(self._path, options, providers=[self._provider])
        if session.get_providers()[0] != self._provider:
            raise RuntimeError(f"ONNX Runtime runs on {session.get_providers()[0]} instead")
        name = session.get_inputs()[0].name

        def run(images: NDArray[np.uint8]) -> Answer:
            logits, _, maps = session.run(None, {name: images})
            return Answer(logits, maps)

        return run


class OpenVino:
    """OpenVINO with the closed form, traced from torch; in float32, bfloat16 or int8 (NNCF)."""

    def __init__(self, folder: str, precision: str) -> None:
        self._path = f"{folder}/{'int8' if precision == 'int8' else 'float32'}.xml"
        # On processors with bfloat16, OpenVINO uses it by default.
        self._hint = "bf16" if precision == "bfloat16" else "f32"

    def build(self, batch_size: int) -> Run:
        """Compiles for the batch size."""
        import openvino

        model = openvino.Core().read_model(self._path)
        model.reshape([batch_size, *INPUT_SIZE, 3])
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self._hint}
        request = openvino.compile_model(model, "CPU", settings).create_infer_request()

        def run(images: NDArray[np.uint8]) -> Answer:
            found = request.infer([images], share_inputs=True)
            return Answer(found[0].copy(), found[2].copy())

        return run


def candidates(folder: str, device: str) -> tuple[list[Candidate], list[str]]:
    """Returns the installed peers, and sentences about those that are missing."""
    weights = f"{folder}/{WEIGHTS}"
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {}
    rest: dict[str, Any] = {"device": device, "environment": hidden}
    found = [
        Candidate("torch, autograd", Torch, (weights, "autograd", device), **rest),
        Candidate("torch, closed form", Torch, (weights, "eager", device), **rest),
        Candidate("torch.compile, closed form", Torch, (weights, "compiled", device), **rest),
    ]
    missing = []
    if is_installed("onnxruntime"):
        found.append(Candidate("ONNX Runtime, closed form", OnnxRuntime, (folder, device), **rest))
    else:
        missing.append("ONNX Runtime is not installed, so it was left out.")
    for precision, package in OPENVINO.items() if device == "cpu" else ():
        name = f"OpenVINO, closed form, {precision}"
        if is_installed("openvino") and is_installed(package):
            exact = precision == "float32"
            found.append(Candidate(name, OpenVino, (folder, precision), exact=exact, **rest))
        else:
            missing.append(f"{package} is not installed, so {name} was left out.")
    return found, missing


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="random", choices=["imagenet", "random"])
    parser.add_argument("--compiler", action="append", help="of the server's graph; all by default")
    parser.add_argument("--device", action="append", choices=["cpu", "gpu"])
    parser.add_argument("--batch-sizes", default="1,2,4,8,16,32,64")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--price-per-hour", action="append", default=[], metavar="DEVICE=PRICE")
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("graph.json"))
    arguments = parser.parse_args(given)
    spec = ModelSpec("resnet50", "resnet50", weights=arguments.weights)
    prices = (price.split("=") for price in arguments.price_per_hour)
    with tempfile.TemporaryDirectory() as folder, open_bar() as bar:
        bar.console.print("Exporting for the peers")
        with Worker(Export, environment={"CUDA_VISIBLE_DEVICES": "-1"}) as worker:
            worker.call("write", spec, folder)
        devices = arguments.device or ["cpu"]
        peers = {device: candidates(folder, device) for device in devices}
        results = run(
            bar,
            model="resnet50",
            weights=arguments.weights,
            compilers=arguments.compiler
            or [name for name in Compiler if name is not Compiler.AUTO],
            devices=devices,
            batch_sizes=[int(size) for size in arguments.batch_sizes.split(",")],
            rounds=arguments.rounds,
            prices={device: float(price) for device, price in prices},
            trial=arguments.trial,
            more=lambda device: peers[device][0],
            skipped=sorted({sentence for _, missing in peers.values() for sentence in missing}),
        )
    results.save(arguments.output)
    print(*results.notes, arguments.output, sep="\n")


if __name__ == "__main__":
    main()
