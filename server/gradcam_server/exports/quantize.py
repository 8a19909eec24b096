"""Quantises a graph to int8 after training, by NNCF."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.graph_io import NO_CLASS, by_rank
from gradcam_server.errors import StartupError
from gradcam_server.graphs.compilers.openvino_runtime import INPUTS
from gradcam_server.graphs.explanation import TAIL


def quantize(model: Any, images: NDArray[np.uint8], targets: int) -> Any:
    """Returns a model whose convolutions run on 8-bit integers; gradients and maps stay in float32.

    Args:
        model: An ``openvino.Model`` of an explanation graph.
        images: Images that choose the ranges of the integers: uint8, shape (N, H, W, 3).
        targets: The number of targets of the graph.

    Raises:
        StartupError: NNCF is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # Else NNCF reports its use.
    try:
        import nncf
    except ImportError as error:
        raise StartupError("int8 needs nncf: pip install 'gradcam-server[int8]'") from error
    logging.getLogger("nncf").setLevel(logging.WARNING)

    def arguments(image: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        classes = np.full((1, targets), by_rank(0), np.int32)
        return dict(
            zip(INPUTS, (image[None], classes, np.full_like(classes, NO_CLASS)), strict=True)
        )

    return nncf.quantize(
        model,
        nncf.Dataset(list(images), arguments),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(patterns=[f"{TAIL}/.*"], validate=False),
    )
