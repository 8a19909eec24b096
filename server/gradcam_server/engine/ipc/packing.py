"""Packs the outputs of a batch for a message: few large arrays instead of some for each image.

Pickling an array costs as much time as copying tens of kilobytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.graph_io import GraphOutput


@dataclass(frozen=True)
class PackedOutputs:
    """The outputs of images of one graph.

    Attributes:
        target_counts: The explained classes of each image.
        map_counts: The maps of each image, of each layer.
        logits: float32, shape (images, classes).
        probabilities: float32, shape (images, classes).
        classes: The explained classes of all images, int32.
        scores: Their scores, float32.
        maps: For each layer the maps of all images, float32, shape (maps, h, w).
    """

    target_counts: tuple[int, ...]
    map_counts: tuple[int, ...]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    classes: NDArray[np.int32]
    scores: NDArray[np.float32]
    maps: tuple[NDArray[np.float32], ...]


def pack(outputs: Sequence[GraphOutput]) -> PackedOutputs:
    """Packs the outputs of at least one image of one graph."""
    layers = range(len(outputs[0].maps))
    return PackedOutputs(
        tuple(len(output.classes) for output in outputs),
        tuple(len(output.maps[0]) for output in outputs) if layers else (0,) * len(outputs),
        np.stack([output.logits for output in outputs]),
        np.stack([output.probabilities for output in outputs]),
        np.concatenate([output.classes for output in outputs]),
        np.concatenate([output.scores for output in outputs]),
        tuple(np.concatenate([output.maps[layer] for output in outputs]) for layer in layers),
    )


def unpack(packed: PackedOutputs) -> Iterator[GraphOutput]:
    """Yields the output of each image: copies, so that no image keeps the others in memory."""
    target = first_map = 0
    counts = zip(packed.target_counts, packed.map_counts, strict=True)
    for row, (target_count, map_count) in enumerate(counts):
        targets = slice(target, target + target_count)
        maps = slice(first_map, first_map + map_count)
        target, first_map = targets.stop, maps.stop
        yield GraphOutput(
            packed.logits[row].copy(),
            packed.probabilities[row].copy(),
            packed.classes[targets].copy(),
            packed.scores[targets].copy(),
            tuple(of_layer[maps].copy() for of_layer in packed.maps),
        )
