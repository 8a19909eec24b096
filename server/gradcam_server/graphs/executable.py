"""A compiled graph: what a batch of images runs through. Free of TensorFlow."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.batch_sizes import plan_batch
from gradcam_server.domain.graph_io import NO_CLASS, GraphItem, GraphKey, GraphOutput, by_rank
from gradcam_server.domain.options import Compiler

Array = NDArray[Any]
Executable = Callable[[Array, Array, Array], Sequence[Array]]
"""Runs one batch size: images (B, H, W, 3), classes and what to contrast them with (B, targets).

Returns logits, probabilities, the classes and their scores, and the maps of each layer: new
arrays, which the next run leaves alone.
"""

Places = Sequence[Executable]
"""Where the same batch can run: the first has the whole device. The others, if there are any, are
its streams: they run side by side, each on a part of its threads.
"""


class CompilationCounter:
    """Counts graphs that were traced or read; after the warm-up it must stand still."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def increment(self) -> None:
        """Counts one."""
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        """So far. Each has one input signature, so compiles once."""
        return self._count


class CompiledGraph:
    """Predicts, and explains up to ``key.max_targets`` classes of each image.

    Compiled for a fixed ladder of batch sizes; a batch is padded to one of them. Each
    image's answer is the same alone, batched and padded, to float32 rounding.

    Args:
        key: What it computes.
        input_size: (height, width) of the images in pixels.
        compiler: What runs it: one for all batch sizes.
        ladder: What runs each batch size, ascending; all have equally many places.
        cost_s: Seconds that a batch of each size takes on the whole device, as measured.
        others: The ladders of other devices.
    """

    def __init__(
        self,
        key: GraphKey,
        input_size: tuple[int, int],
        compiler: Compiler,
        ladder: Mapping[int, Places],
        cost_s: Mapping[int, float],
        others: Sequence[Mapping[int, Places]] = (),
    ) -> None:
        self.key, self.compiler = key, compiler
        self._image_shape = (input_size[0], input_size[1], 3)
        self._ladder, self._cost_s, self._others = ladder, cost_s, others
        count = 1 if others else len(next(iter(ladder.values())))
        self._places = [
            {size: places[number] for size, places in one.items()}
            for one in (ladder, *others)
            for number in range(count)
        ]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The compiled batch sizes, ascending."""
        return tuple(self._cost_s)

    @property
    def max_batch_size(self) -> int:
        """The largest compiled batch size."""
        return max(self._cost_s)

    @property
    def device_count(self) -> int:
        """On how many devices it can run, the first of all; its streams count as such."""
        return len(self._places)

    @property
    def has_streams(self) -> bool:
        """Whether the devices after the first are its streams."""
        return not self._others and len(self._places) > 1

    @property
    def background(self) -> bool:
        """Whether its batches must leave the device to others."""
        return self.key.perturbed

    def beside(self, others: Sequence["CompiledGraph"]) -> "CompiledGraph":
        """Returns the graph that runs on the devices of this one and of others like it."""
        ladders = [graph._ladder for graph in others]
        return CompiledGraph(
            self.key, self._image_shape[:2], self.compiler, self._ladder, self._cost_s, ladders
        )

    def up_to(self, batch_size: int) -> "CompiledGraph":
        """Returns the same graph without its batch sizes beyond one that it has."""

        def kept(ladder: Mapping[int, Any]) -> dict[int, Any]:
            return {size: each for size, each in ladder.items() if size <= batch_size}

        others = [kept(ladder) for ladder in self._others]
        size, cost_s = self._image_shape[:2], kept(self._cost_s)
        return CompiledGraph(self.key, size, self.compiler, kept(self._ladder), cost_s, others)

    @property
    def cost_s(self) -> Mapping[int, float]:
        """Seconds that a batch of each size takes on the whole device, as measured."""
        return self._cost_s

    @property
    def min_s(self) -> float:
        """Seconds that its quickest batch takes, as measured."""
        return min(self._cost_s.values())

    def plan(self, waiting: int) -> tuple[int, int]:
        """Chooses how many of ``waiting`` images to take, and the batch size to run."""
        return plan_batch(waiting, self._cost_s)

    def run(
        self, items: Sequence[GraphItem], padded_size: int, device: int = 0
    ) -> list[GraphOutput]:
        """Computes a batch.

        Args:
            items: At most ``padded_size`` images.
            padded_size: A compiled batch size.
            device: Where; a device runs one batch at a time.

        Returns:
            One output for each item, in their order.
        """
        images = np.zeros((padded_size, *self._image_shape), self.key.pixel_type)
        classes = np.full((padded_size, self.key.max_targets), by_rank(0), np.int32)
        against = np.full_like(classes, NO_CLASS)
        for row, item in enumerate(items):
            images[row] = item.image
            for slot, target in enumerate(item.targets):
                classes[row, slot], against[row, slot] = target.index, target.against
        logits, probabilities, chosen, scores, *maps = self._places[device][padded_size](
            images, classes, against
        )
        return [
            GraphOutput(
                logits[row],
                probabilities[row],
                chosen[row, :count],
                scores[row, :count],
                tuple(of_layer[row, : self.key.channel_count or count] for of_layer in maps),
            )
            for row, count in enumerate(len(item.targets) for item in items)
        ]
