"""The exports of the bundle on a device: their modules as functions, and the product's graph.

Needs JAX, and neither TensorFlow nor a server.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from safetensors.flax import load_file

from gpu_check.weights import PREDICT, predict_module
from gradcam_server.domain.graph_io import NO_CLASS, GraphItem, GraphTarget, by_rank
from gradcam_server.domain.options import Compiler
from gradcam_server.exports.manifest import WEIGHTS, ExportedGraph, read_manifest
from gradcam_server.graphs.compilers.pjrt_devices import set_up_devices
from gradcam_server.graphs.compilers.pjrt_modules import read_signature, with_fast_products
from gradcam_server.graphs.compilers.pjrt_runtime import load_module, to_function
from gradcam_server.graphs.executable import CompiledGraph


class Network:
    """An export for XLA, on one device.

    Args:
        folder: The export.
        device: The device, as ``gradcam serve --device`` takes it.
        cache: Folder of what XLA compiled; None keeps nothing.
        fast_products: Whether float32 products may be rounded, to TF32.

    Raises:
        StartupError: The export cannot be used, or there is no such device.
    """

    def __init__(
        self, folder: Path, device: str, cache: Path | None, fast_products: bool = False
    ) -> None:
        if fast_products:  # the server's setting: what load_module of the product reads
            jax.config.update("jax_default_matmul_precision", "tensorfloat32")
        (self.device,) = set_up_devices([device], cache=None if cache is None else cache / "xla")
        self.manifest = read_manifest(folder)
        self._folder, self._fast_products = folder, fast_products
        loaded = load_file(folder / WEIGHTS)
        self._weights = {key: jax.device_put(value, self.device) for key, value in loaded.items()}

    @property
    def graph(self) -> ExportedGraph:
        """Its first graph: Grad-CAM at the default layer."""
        return self.manifest.graphs[0]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that were exported."""
        return tuple(self.graph.modules)

    def explain(self, batch_size: int) -> Callable[..., Any]:
        """Returns the function of images, classes and contrasted classes on the device.

        It returns at once. XLA compiles at its first call.
        """
        return self._function(self.graph.modules[batch_size], self.graph.weights)

    def predict(self, batch_size: int) -> Callable[..., Any] | None:
        """Returns the same without explanations, or None if there is none of this batch size."""
        name = predict_module(batch_size)
        if not (self._folder / name).exists():
            return None
        names = json.loads((self._folder / PREDICT).read_text("utf-8"))["weights"]
        return self._function(name, names)

    def compiled(self, batch_size: int) -> CompiledGraph:
        """Returns the graph that the server runs, for one batch size."""
        artifact = (self._folder / self.graph.modules[batch_size]).read_bytes()
        taken = self._taken(self.graph.weights)
        executable = load_module(artifact, taken, self.device)
        by_size, unknown_s = {batch_size: (executable,)}, {batch_size: 0.0}
        input_size = self.manifest.input_size
        return CompiledGraph(self.graph.key, input_size, Compiler.PJRT, by_size, unknown_s)

    def arrays(self, batch_size: int) -> tuple[NDArray[Any], ...]:
        """Makes the inputs of a batch: random images, and their top classes to explain."""
        classes = np.full((batch_size, self.graph.key.max_targets), by_rank(0), np.int32)
        images = np.stack([item.image for item in self.items(batch_size)])
        return images, classes, np.full_like(classes, NO_CLASS)

    def items(self, batch_size: int) -> list[GraphItem]:
        """Makes the same batch as the server's requests."""
        chance = np.random.default_rng(0)
        shape = (*self.manifest.input_size, 3)
        return [
            GraphItem(chance.integers(0, 256, shape, np.uint8), [GraphTarget(by_rank(0))])
            for _ in range(batch_size)
        ]

    def _taken(self, names: Iterable[str]) -> list[Any]:
        return [self._weights[name] for name in names]

    def _function(self, file: str, names: Iterable[str]) -> Callable[..., Any]:
        artifact = (self._folder / file).read_bytes()
        signature = read_signature(artifact)
        if self._fast_products:
            artifact = with_fast_products(artifact)
        call = to_function(artifact, signature, self.device)
        function = jax.jit(call)
        weights = self._taken(names)
        return lambda *inputs: function(*inputs, *weights)
