"""A compiled graph, which predicts and explains batches of images. Free of TensorFlow."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.batch_costs import BatchCosts
from gradcam_server.domain.graph_io import NO_CLASS, GraphItem, GraphKey, GraphOutput, by_rank
from gradcam_server.domain.options import Compiler

T = TypeVar("T")

Array = NDArray[Any]
Executable = Callable[[Array, Array, Array], Sequence[Array]]
"""Runs a batch: images (B, H, W, 3), classes and the classes to contrast them with (B, targets).

Returns logits, probabilities, the classes and their scores, and the maps of each layer: new
arrays, which the next run leaves alone. An executable of a graph whose depth is more than 1 returns
at once, with arrays that the device still computes: ``numpy.asarray`` waits for them, and raises
what went wrong.
"""

Executables = Sequence[Executable]
"""The executables of a batch size on a device: the first has the whole device. The others, if any,
are its streams: they run side by side, each on a part of its threads.
"""


class RunAlone(Protocol):
    """Runs a function while the device computes no batch, and returns its result.

    It is called on a thread that may wait.
    """

    def __call__(self, work: Callable[[], T], /) -> T:
        """Waits until the device is free, and runs the function."""
        ...


def at_once(work: Callable[[], T], /) -> T:
    """Runs a function: the ``RunAlone`` of a device that has no batches yet."""
    return work()


@dataclass(frozen=True)
class Division:
    """The streams of a graph.

    Attributes:
        executables: One for each stream, for all batch sizes; none if there is but the whole CPU.
        cost_s: Seconds that a batch of each size takes in a stream while the others run, too.
        is_measured: Whether they were measured with this graph, so that none is guessed.
    """

    executables: Executables = ()
    cost_s: Mapping[int, float] = field(default_factory=dict)
    is_measured: bool = False


Divide = Callable[[RunAlone], Division]
"""Compiles the streams of a graph, and measures before how many are the fastest."""

# The greatest difference of two answers, as a part of the greatest value.
_ROUNDING = 0.05


def check_alike(usual: Sequence[Array], other: Sequence[Array]) -> None:
    """Compares the floats of two answers to a batch.

    Raises:
        ValueError: They differ by more than rounding.
    """
    for expected, found in zip(map(np.asarray, usual), map(np.asarray, other), strict=True):
        largest = float(np.abs(expected).max())
        if expected.dtype.kind == "f" and not np.allclose(
            found, expected, rtol=0, atol=_ROUNDING * largest
        ):
            raise ValueError("their answers differ")


class CompilationCounter:
    """Counts graphs that were traced or read; after the warm-up the count must stay the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def increment(self) -> None:
        """Counts one graph."""
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        """The graphs so far. Each has one input signature, so compiles once."""
        return self._count


class CompiledGraph:
    """Predicts, and explains up to ``key.max_targets`` classes of each image.

    Compiled for fixed batch sizes; a batch is padded to one of them. Each image's answer is the
    same alone, batched and padded, to float32 rounding.

    Args:
        key: The layers, method, score and targets that it computes.
        input_size: (height, width) of the images in pixels.
        compiler: The compiler of all batch sizes.
        executables: Executables by batch size, ascending; all sizes have equally many.
        cost_s: Seconds that a batch of each size takes on the whole device, as measured.
        other_devices: The executables of further devices.
        depth: How many batches may be in flight on a device (``CompilerRow.depths``).
        stream_cost_s: Seconds that a batch of each size takes in a stream while the others run,
            too; without it, as on the whole device.
        divide: Compiles its streams, for ``divided``; None if it can have none.
        guessed: Batch sizes whose ``cost_s`` was measured elsewhere (``BatchCosts``).
    """

    def __init__(
        self,
        key: GraphKey,
        input_size: tuple[int, int],
        compiler: Compiler,
        executables: Mapping[int, Executables],
        cost_s: Mapping[int, float],
        other_devices: Sequence[Mapping[int, Executables]] = (),
        depth: int = 1,
        stream_cost_s: Mapping[int, float] | None = None,
        divide: Divide | None = None,
        guessed: Collection[int] = (),
    ) -> None:
        self.key, self.compiler, self.depth = key, compiler, depth
        self._divide = divide
        self._image_shape = (input_size[0], input_size[1], 3)
        self._executables, self._cost_s, self._other_devices = executables, cost_s, other_devices
        self._stream_cost_s = stream_cost_s
        self._guessed = guessed
        self._costs = BatchCosts(cost_s, guessed)
        # The sizes of a stream differ little, so they are compared for as long as the graph serves.
        self._stream_costs = (
            BatchCosts(stream_cost_s, guessed, learns=True) if stream_cost_s else None
        )
        count = 1 if other_devices else len(next(iter(executables.values())))
        self._by_device = [
            {size: of_size[number] for size, of_size in of_device.items()}
            for of_device in (executables, *other_devices)
            for number in range(count)
        ]
        # Free buffers by batch size; a deque may be used by several threads.
        self._buffers: Mapping[int, deque[Array]] = {size: deque() for size in cost_s}

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
        """The number of devices; streams count as devices after the one that they divide."""
        return len(self._by_device)

    @property
    def has_streams(self) -> bool:
        """Whether the devices after the first are its streams."""
        return not self._other_devices and len(self._by_device) > 1

    @property
    def stream_count(self) -> int:
        """How many batches the device computes at the same time once images wait."""
        return len(self._by_device) - 1 if self.has_streams else 1

    @property
    def background(self) -> bool:
        """Whether its batches give way to those of other graphs."""
        return self.key.perturbed

    def divided(self, run_alone: RunAlone = at_once) -> "CompiledGraph":
        """Compiles the streams. Takes seconds if their number is measured, too.

        Meanwhile this graph may answer requests; no batch of it may run while ``run_alone`` does.

        Args:
            run_alone: Runs what is measured.

        Returns:
            The graph with its streams; this graph if it has none.
        """
        if self._divide is None:
            return self
        division, self._divide = self._divide(run_alone), None
        if not division.executables:
            return self
        executables = {
            size: (*of_size, *division.executables) for size, of_size in self._executables.items()
        }
        stream_cost_s = {size: division.cost_s[size] for size in self._cost_s}
        guessed = () if division.is_measured else self._guessed
        divided = self._with(executables, self._cost_s, (), stream_cost_s, guessed=guessed)
        divided._costs = self._costs
        return divided

    def with_devices_of(self, copies: Sequence["CompiledGraph"]) -> "CompiledGraph":
        """Returns the graph that runs on its own device and on those of its copies."""
        return self._with(
            *(self._executables, self._cost_s, [copy._executables for copy in copies]),
            *(self._stream_cost_s, None if copies else self._divide, self._guessed),
        )

    def up_to(self, batch_size: int) -> "CompiledGraph":
        """Returns the same graph without batch sizes greater than one of its own."""

        def kept(by_size: Mapping[int, T]) -> dict[int, T]:
            return {size: value for size, value in by_size.items() if size <= batch_size}

        other_devices = [kept(executables) for executables in self._other_devices]
        stream_cost_s = kept(self._stream_cost_s) if self._stream_cost_s else None
        return self._with(
            *(kept(self._executables), kept(self._cost_s), other_devices, stream_cost_s),
            *(self._divide, self._guessed),
        )

    def _with(
        self,
        executables: Mapping[int, Executables],
        cost_s: Mapping[int, float],
        other_devices: Sequence[Mapping[int, Executables]],
        stream_cost_s: Mapping[int, float] | None,
        divide: Divide | None = None,
        guessed: Collection[int] = (),
    ) -> "CompiledGraph":
        return CompiledGraph(
            *(self.key, self._image_shape[:2], self.compiler, executables, cost_s, other_devices),
            *(self.depth, stream_cost_s, divide),
            [size for size in guessed if size in cost_s],
        )

    @property
    def cost_s(self) -> Mapping[int, float]:
        """Seconds that a batch of each size takes on the whole device, as measured."""
        return self._cost_s

    @property
    def min_s(self) -> float:
        """Seconds of the quickest batch, as measured."""
        return min(self._cost_s.values())

    @property
    def image_s(self) -> float:
        """Seconds of all devices that an image takes in a batch of the best size, as measured."""
        of_device_s = min(seconds / size for size, seconds in self._cost_s.items())
        if self._stream_cost_s:
            of_stream_s = min(seconds / size for size, seconds in self._stream_cost_s.items())
            of_device_s = min(of_device_s, of_stream_s / self.stream_count)
        return of_device_s / (1 + len(self._other_devices))

    def plan(self, waiting: int, busy: float = 1.0) -> tuple[int, int]:
        """Returns how many of ``waiting`` images to take, and the batch size to run.

        ``busy`` is the part of the recent time in which the device had a batch, 0 to 1.
        """
        # Few images alone go to the whole device: there is nothing to plan.
        return (self._stream_costs or self._costs).plan(waiting, busy)

    def expected_s(self, padded_size: int) -> float:
        """Returns the seconds that a batch of a compiled size takes, by the latest batches."""
        return self._costs.cost_s[padded_size]

    def ran(self, padded_size: int, device: int, seconds: float) -> None:
        """Learns what a batch costs from one that had the device alone.

        Args:
            padded_size: Its size.
            device: Number of its device.
            seconds: Seconds that it took.
        """
        costs = self._stream_costs if device and self._stream_costs else self._costs
        costs.learn(padded_size, seconds)

    def run(
        self, items: Sequence[GraphItem], padded_size: int, device: int = 0
    ) -> list[GraphOutput]:
        """Computes a batch.

        Args:
            items: At most ``padded_size`` images.
            padded_size: A compiled batch size.
            device: Number of the device, which runs one batch at a time.

        Returns:
            One output for each item, in the order of the items.
        """
        return self.dispatch(items, padded_size, device)()

    def dispatch(
        self, items: Sequence[GraphItem], padded_size: int, device: int = 0
    ) -> Callable[[], list[GraphOutput]]:
        """Starts to compute a batch, as ``run`` does.

        Returns:
            A function that waits for the outputs and returns them.
        """
        images = self._take_buffer(padded_size)
        images[len(items) :] = 0
        classes = np.full((padded_size, self.key.max_targets), by_rank(0), np.int32)
        against = np.full_like(classes, NO_CLASS)
        for row, item in enumerate(items):
            images[row] = item.image
            for slot, target in enumerate(item.targets):
                classes[row, slot], against[row, slot] = target.index, target.against
        outputs = self._by_device[device][padded_size](images, classes, against)
        target_counts = [len(item.targets) for item in items]
        return lambda: self._split(outputs, target_counts, images)

    def _take_buffer(self, padded_size: int) -> Array:
        """Returns memory for the images of a batch: that of an earlier batch, if there is one.

        A new buffer of many megabytes has no pages yet, and takes longer to fill than to copy.
        """
        try:
            return self._buffers[padded_size].pop()
        except IndexError:
            return np.empty((padded_size, *self._image_shape), self.key.pixel_type)

    def _split(
        self, outputs: Sequence[Array], target_counts: Sequence[int], images: Array
    ) -> list[GraphOutput]:
        """Waits for the outputs of a batch, and returns those of each of its images."""
        logits, probabilities, chosen, scores, *maps = map(np.asarray, outputs)
        self._buffers[len(images)].append(images)
        return [
            GraphOutput(
                logits[row],
                probabilities[row],
                chosen[row, :count],
                scores[row, :count],
                tuple(of_layer[row, : self.key.channel_count or count] for of_layer in maps),
            )
            for row, count in enumerate(target_counts)
        ]
