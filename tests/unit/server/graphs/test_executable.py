"""A compiled graph, without a compiler."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gradcam_server.domain.graph_io import NO_CLASS, GraphItem, GraphKey, GraphTarget, by_rank
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.graphs.executable import Array, CompiledGraph, Division

SIZE = (2, 3)
KEY = GraphKey("m", ("l",), Method.GRAD_CAM, ScoreType.LOGIT, 2)


class Pending:
    """An array that a device still computes."""

    def __init__(self, device: "Device", value: Array) -> None:
        self._device, self._value = device, value

    def __array__(self, dtype: object = None, copy: object = None) -> Array:
        self._device.downloads += 1
        if self._device.error is not None:
            raise self._device.error
        return self._value


class Device:
    """Returns at once: the mean of each image as its logit, and its inputs.

    Attributes:
        batches: The inputs of all batches.
        downloads: Arrays that were waited for.
        error: Raised when an array is waited for.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[Array, Array, Array]] = []
        self.downloads = 0
        self.error: Exception | None = None

    def __call__(self, images: Array, classes: Array, against: Array) -> Sequence[Array]:
        self.batches.append((images, classes, against))
        means = images.mean((1, 2, 3), dtype=np.float32)[:, None]
        maps = np.ones((len(images), 2, 1, 1), np.float32) * means[:, :, None, None]
        outputs = means, means, classes, classes.astype(np.float32), maps
        return [Pending(self, value) for value in outputs]  # type: ignore[misc]


def graph(device: Device, depth: int = 2) -> CompiledGraph:
    executables = dict.fromkeys((1, 4), (device,))
    return CompiledGraph(KEY, SIZE, Compiler.XLA, executables, {1: 1.0, 4: 2.0}, depth=depth)


def streamed(cost_s: dict[int, float], stream_cost_s: dict[int, float] | None) -> CompiledGraph:
    """A graph of the whole device and of two streams."""
    executables = dict.fromkeys(cost_s, (Device(),) * 3)
    return CompiledGraph(
        KEY, SIZE, Compiler.OPENVINO, executables, cost_s, stream_cost_s=stream_cost_s
    )


@pytest.mark.parametrize("waiting", [2, 4, 6])
def test_batches_are_planned_by_the_costs_of_a_stream(waiting: int) -> None:
    """A padded batch that pays on all threads need not pay on one: then images run one by one."""
    pays, pays_not = {1: 1.0, 8: 1.1}, {1: 1.0, 8: 8.0}
    whole, divided = streamed(pays, None), streamed(pays, pays_not)
    assert whole.plan(waiting) == (waiting, 8)
    assert divided.plan(waiting) == divided.up_to(1).plan(waiting) == (1, 1)
    assert divided.cost_s == pays


def test_streams_are_not_further_devices() -> None:
    """The whole device is not counted among its streams, and a copy of a graph has none."""
    divided, single = streamed({1: 1.0}, {1: 2.0}), graph(Device())
    assert (divided.has_streams, divided.stream_count) == (True, 2)
    assert (single.has_streams, single.stream_count) == (False, 1)
    copied = divided.with_devices_of([divided])
    assert (copied.has_streams, copied.stream_count, copied.device_count) == (False, 1, 2)


def divisible(count: int, is_measured: bool = False) -> CompiledGraph:
    """A graph of the whole device that can be divided into streams."""
    cost_s = {1: 1.0, 4: 2.0}
    division = Division((Device(),) * count, {1: 3.0, 4: 13.0} if count else {}, is_measured)
    return CompiledGraph(
        *(KEY, SIZE, Compiler.OPENVINO, dict.fromkeys(cost_s, (Device(),)), cost_s),
        divide=lambda _: division,
        guessed=[4],
    )


def test_a_graph_is_divided_later() -> None:
    """It stays as it is, for the batches that it runs; another graph has the streams, too."""
    whole = divisible(2)
    divided = whole.divided()
    assert (whole.stream_count, divided.stream_count) == (1, 2)
    assert divided.plan(3) == (1, 1)
    assert divided.divided() is divided
    assert divisible(0).divided().stream_count == 1


def test_a_graph_can_be_divided_whatever_was_taken_from_it() -> None:
    """Without large batches, or if there are no further devices; further devices exclude it."""
    for one in (divisible(2).up_to(1), divisible(2).with_devices_of([])):
        assert one.divided().stream_count == 2
        assert set(one.divided().batch_sizes) == set(one.batch_sizes)
    several = divisible(2).with_devices_of([graph(Device())])
    assert several.divided() is several


def item(value: int, *targets: GraphTarget) -> GraphItem:
    return GraphItem(np.full((*SIZE, 3), value, np.uint8), targets)


def test_dispatching_does_not_wait_for_the_device() -> None:
    """Several batches may be dispatched before the first is waited for; each has its answers."""
    device = Device()
    compiled = graph(device)
    first = compiled.dispatch([item(1), item(2, GraphTarget(7))], 4)
    second = compiled.dispatch([item(3)], 1)
    assert device.downloads == 0
    assert [float(one.logits[0]) for one in second()] == [3.0]
    outputs = first()
    assert [float(one.logits[0]) for one in outputs] == [1.0, 2.0]
    assert [one.classes.tolist() for one in outputs] == [[], [7]]
    assert [one.maps[0].shape for one in outputs] == [(0, 1, 1), (1, 1, 1)]
    assert all(isinstance(one.probabilities, np.ndarray) for one in outputs)


def test_what_goes_wrong_on_the_device_is_raised_when_it_is_waited_for() -> None:
    """The other batch is not concerned."""
    device = Device()
    first, second = (graph(device).dispatch([item(value)], 1) for value in (1, 2))
    device.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        first()
    device.error = None
    assert float(second()[0].logits[0]) == 2.0


def test_a_batch_is_padded_with_black_images_and_best_classes() -> None:
    """Whatever the memory held before: a graph computes the same for the same images."""
    device = Device()
    np.full((4, *SIZE, 3), 255, np.uint8)  # is freed at once, and its memory may be used again
    graph(device).run([item(9, GraphTarget(5, 6))], 4)
    ((images, classes, against),) = device.batches
    assert images.dtype == np.uint8
    assert images[0].tolist() == np.full((*SIZE, 3), 9).tolist()
    assert not images[1:].any()
    assert classes.tolist() == [[5, by_rank(0)], *[[by_rank(0)] * 2] * 3]
    assert against.tolist() == [[6, NO_CLASS], *[[NO_CLASS] * 2] * 3]


def test_a_graph_learns_from_its_batches() -> None:
    """The whole device and the streams each; what was learnt before it was divided is kept."""
    whole = divisible(2)
    whole.ran(4, 0, 8.0)
    divided = whole.divided()
    assert divided.expected_s(4) == pytest.approx(8.0)
    assert divided.plan(3) == (1, 1)
    divided.ran(4, 2, 4.0)
    assert divided.plan(3) == (3, 4)
    assert divided.expected_s(4) == pytest.approx(8.0)
    assert divided.cost_s == {1: 1.0, 4: 2.0}


def test_what_was_measured_counts_as_several_batches() -> None:
    """A batch that was quick by chance does not change how images are batched; a guess it does."""
    for is_measured in (True, False):
        divided = divisible(2, is_measured).divided()
        divided.plan(1)
        divided.ran(4, 2, 4.0)
        assert (divided.plan(3) == (1, 1)) is is_measured


def test_depth_and_expected_time_travel_with_the_graph() -> None:
    """Also to the graph of several devices, and to that without large batches."""
    one = graph(Device(), depth=3)
    several = one.with_devices_of([graph(Device(), depth=3)]).up_to(1)
    assert (one.depth, several.depth) == (3, 3)
    assert [one.expected_s(size) for size in (1, 4)] == [1.0, 2.0]
    assert CompiledGraph(KEY, SIZE, Compiler.XLA, {1: (Device(),)}, {1: 1.0}).depth == 1


def test_devices_share_the_images() -> None:
    """The seconds of an image are those of the best batch size, divided among the devices."""
    one = graph(Device())
    assert (one.min_s, one.image_s) == (1.0, 0.5)
    assert one.up_to(1).image_s == 1.0
    assert one.with_devices_of([graph(Device()), graph(Device())]).image_s == pytest.approx(0.5 / 3)
    # Two streams that are slower than the whole device each, and faster together.
    assert streamed({1: 1.0, 4: 4.0}, {1: 1.5, 4: 6.0}).image_s == pytest.approx(0.75)


def test_a_buffer_is_used_again_when_its_batch_is_answered() -> None:
    """Never while the batch is in flight, and not at all if it failed: a device may still read."""
    device = Device()
    compiled = graph(device)

    def dispatch(value: int) -> tuple[Callable[[], object], Array]:
        wait = compiled.dispatch([item(value)], 4)
        return wait, device.batches[-1][0]

    (first, one), (_, two) = dispatch(1), dispatch(2)
    assert one is not two
    first()
    failing, three = dispatch(3)
    assert three is one
    assert three[0, 0, 0, 0] == 3
    assert not three[1:].any()
    device.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        failing()
    _, four = dispatch(4)
    assert four is not one
