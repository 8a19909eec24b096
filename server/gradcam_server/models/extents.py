"""Finds the part of the model's input that the map of each layer covers: its extent.

Models crop, pad and resize images themselves. Before the first convolution every tensor is
probed with images that show positions (``positions.py``). After it, convolutions and pooling keep
the extent: their maps are stretched over it. There only the layers that are known to move
positions are probed, each alone.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.layers import Extent, has_positions
from gradcam_server.models.positions import (
    MovedPositionsError,
    UnknownPositionsError,
    locate,
    position_images,
)

logger = logging.getLogger(__name__)

# In pixels: differences that rounding of the values makes.
_ROUNDING = 0.1

IMAGE = ""
"""The key of the model's input."""


@dataclass(frozen=True)
class Step:
    """A layer or an operation, in the order of computation.

    Attributes:
        key: Its name.
        inputs: Keys of the steps whose outputs it takes.
        shape: Shape of its first output.
        dtype: Type of its first output.
        window: (height, width) of the window of convolutions and pooling; (1, 1) for other layers
            that mix values by their weights; None for the rest.
        moves: Whether layers of its type crop, pad, resize or move positions.
        is_hidden: Whether it may contain layers that cannot be seen.
    """

    key: str
    inputs: tuple[str, ...]
    shape: tuple[int | None, ...]
    dtype: str
    window: tuple[int, int] | None = None
    moves: bool = False
    is_hidden: bool = False


Run = Callable[[str, NDArray[np.float32], Sequence[Step]], Mapping[str, NDArray[np.floating]]]
"""Computes steps, in order, from values of one key; returns their first outputs by key."""

Differentiate = Callable[[Step], NDArray[np.floating]]
"""Returns the size of a step's gradient by each position of its one input, shape (h, w)."""


def find_extents(
    model: str,
    steps: Sequence[Step],
    shape: tuple[int, int, int],
    dtype: str,
    run: Run,
    differentiate: Differentiate | None = None,
) -> dict[str, Extent]:
    """Finds the extents of all steps, and warns of steps whose extents cannot be found.

    Args:
        model: The model's name, for the warning.
        steps: All steps from the image to the logits, in the order of computation.
        shape: (height, width, channels) of the model's input.
        dtype: Type of the model's input.
        run: Computes steps.
        differentiate: Computes gradients; needed if a step is hidden.

    Returns:
        Extents by key, without those of the whole input and unknown ones.
    """
    walk = _Walk(steps, shape, dtype, run, differentiate)
    walk.run()
    if walk.problems:
        logger.warning(
            "%s moves pixels in a way that cannot be followed: heat maps of these layers, and of "
            "layers after them, may lie in the wrong place: %s. Crop, resize and flip images "
            "before they are sent, or serve the model without these layers",
            *(model, "; ".join(walk.problems)),
        )
    return {key: found for key, found in walk.extents.items() if found and found != walk.whole}


class _Walk:
    """One walk through a model.

    Attributes:
        extents: Extents by key, None if unknown. Steps without positions have no entry.
        problems: The steps that cannot be followed, in words.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        shape: tuple[int, int, int],
        dtype: str,
        run: Run,
        differentiate: Differentiate | None,
    ) -> None:
        image = Step(IMAGE, (), (None, *shape), dtype)
        self.whole = Extent(0.0, 0.0, float(shape[0]), float(shape[1]))
        self.extents: dict[str, Extent | None] = {IMAGE: self.whole}
        self.problems: list[str] = []
        self._steps, self._run, self._differentiate = steps, run, differentiate
        self._by_key = {IMAGE: image, **{step.key: step for step in steps}}
        self._users: dict[str, list[Step]] = defaultdict(list)
        for step in steps:
            for key in step.inputs:
                self._users[key].append(step)
        self._front = {IMAGE}
        # By the key of a step that moves: the step before the chain of such steps.
        self._origins: dict[str, Step] = {}

    def run(self) -> None:
        """Fills the attributes."""
        front = []
        for step in self._steps:
            if step.window is None and all(key in self._front for key in step.inputs):
                self._front.add(step.key)
                front.append(step)
        is_needed = any(_is_map(step) and not self._is_padding_of_windows(step) for step in front)
        values = self._compute(IMAGE, front) if is_needed else {}
        for step in self._steps:
            self._visit(step, values.get(step.key))

    def _visit(self, step: Step, values: NDArray[np.floating] | None) -> None:
        given = [self.extents[key] for key in step.inputs if key in self.extents]
        if not given or not _has_positions(step):
            return
        if None in given:
            self.extents[step.key] = None
            return
        first = given[0]
        assert first is not None
        tolerance = max(
            1.0, *(_spacing(first, self._by_key[key]) for key in step.inputs if key in self.extents)
        )
        if any(extent and _distance(extent, first) > tolerance for extent in given):
            self._give_up(step, "joins maps that cover different parts of the image")
            return
        if step.is_hidden and step.inputs[0] in self._front:
            self.extents[step.key] = self._reached(step, first)
        elif step.window is not None or not _is_map(step) or self._is_padding_of_windows(step):
            self.extents[step.key] = first
        elif step.key in self._front:
            self._place(step, first, values)
        elif step.moves and any(key in self._front for key in step.inputs):
            self._give_up(step, "moves pixels by values computed from the image")
        elif step.moves and len(step.inputs) == 1 and self._changes_size(step):
            self._place(step, first, None)
        else:
            self.extents[step.key] = first

    def _place(self, step: Step, given: Extent, values: NDArray[np.floating] | None) -> None:
        """Locates a step by its values for the image, or alone.

        Args:
            step: The step.
            given: The extent of its inputs.
            values: Its output for the images that show positions; None if unknown.
        """
        source = next(self._by_key[key] for key in step.inputs if key in self.extents)
        try:
            placed = self._located(step, source, given, values)
        except MovedPositionsError:
            self._give_up(step, "moves pixels")
            return
        except UnknownPositionsError:
            if step.shape[1:3] != source.shape[1:3]:
                self._give_up(step, "changes height or width")
                return
            placed = given
        if step.key not in self._front:
            placed = self._without_shift(step, source, placed)
        self.extents[step.key] = given if _distance(placed, given) < _ROUNDING else placed

    def _without_shift(self, step: Step, source: Step, placed: Extent) -> Extent:
        """Returns the extent before a chain of pads and crops, if it shifts by one position only.

        NASNet reduces maps by such chains, and joins their outputs with maps that are not shifted.
        """
        origin = self._origins.get(source.key, source)
        self._origins[step.key] = origin
        before = self.extents[origin.key]
        if before is None or origin.shape[1:3] != step.shape[1:3]:
            return placed
        is_shift = _distance(placed, before) <= 1.01 * _spacing(before, origin)
        return before if is_shift else placed

    def _located(
        self, step: Step, source: Step, given: Extent, values: NDArray[np.floating] | None
    ) -> Extent:
        if values is not None:
            with suppress(UnknownPositionsError):
                return locate(values, (round(self.whole.height), round(self.whole.width)))
        if len(step.inputs) != 1 or not _is_map(source):
            raise UnknownPositionsError
        values = self._compute(source.key, [step]).get(step.key)
        if values is None:
            raise UnknownPositionsError
        height, width = (size or 0 for size in source.shape[1:3])
        part = locate(values, (height, width))
        vertical, horizontal = given.height / height, given.width / width
        return Extent(
            given.top + part.top * vertical,
            given.left + part.left * horizontal,
            part.height * vertical,
            part.width * horizontal,
        )

    def _reached(self, step: Step, given: Extent) -> Extent:
        """Returns the part of its input on which a hidden step depends.

        A smaller part is a crop; padding within the step cannot be seen.
        """
        source = self._by_key[step.inputs[0]]
        if not self._differentiate or len(step.inputs) != 1 or not _is_map(source):
            return given
        try:
            gradient = self._differentiate(step)
        except Exception as error:  # noqa: BLE001 - runs any code of the model
            logger.debug("%s has no gradient: %r", step.key, error)
            return given
        rows, columns = (np.flatnonzero(gradient.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return given
        vertical, horizontal = (
            length / count
            for length, count in zip((given.height, given.width), gradient.shape, strict=True)
        )
        reached = Extent(
            given.top + rows[0] * vertical,
            given.left + columns[0] * horizontal,
            (rows[-1] + 1 - rows[0]) * vertical,
            (columns[-1] + 1 - columns[0]) * horizontal,
        )
        # Strides may leave out pixels at the borders.
        return given if _distance(reached, given) <= 2 * _spacing(given, step) else reached

    def _changes_size(self, step: Step) -> bool:
        return step.shape[1:3] != self._by_key[step.inputs[0]].shape[1:3]

    def _is_padding_of_windows(self, step: Step) -> bool:
        """Returns whether a step adds no more than "same" padding for the windows that use it."""
        before, users = self._by_key[step.inputs[0]], self._users[step.key]
        return (
            bool(users)
            and len(step.inputs) == 1
            and _is_map(before)
            and self._changes_size(step)
            and all(
                user.window is not None and 0 <= (after or 0) - (size or 0) < user.window[axis]
                for user in users
                for axis, (after, size) in enumerate(
                    zip(step.shape[1:3], before.shape[1:3], strict=True)
                )
            )
        )

    def _compute(self, source: str, steps: Sequence[Step]) -> Mapping[str, NDArray[np.floating]]:
        origin = self._by_key[source]
        height, width, channels = (size or 0 for size in origin.shape[1:])
        dtypes = {origin.dtype, *(step.dtype for step in steps)}
        images = position_images((height, width, channels), dtypes)
        try:
            return self._run(source, images, steps)
        except Exception as error:  # noqa: BLE001 - runs any code of the model
            logger.debug("Positions after %s cannot be probed: %r", source or "the image", error)
            return {}

    def _give_up(self, step: Step, reason: str) -> None:
        self.extents[step.key] = None
        self.problems.append(f"{step.key} {reason}")


def _is_map(step: Step) -> bool:
    """Returns whether a step's output is (batch, height, width, channels) of known sizes."""
    return has_positions(step.shape) and None not in step.shape[1:]


def _has_positions(step: Step) -> bool:
    return len(step.shape) > 2 and any(size != 1 for size in step.shape[1:-1])


def _spacing(extent: Extent, step: Step) -> float:
    """Returns the pixels between two positions of a step's map."""
    if not _is_map(step):
        return 0.0
    height, width = (size or 1 for size in step.shape[1:3])
    return max(extent.height / height, extent.width / width)


def _distance(one: Extent, other: Extent) -> float:
    """Returns the largest distance between the edges of two extents, in pixels."""
    return max(abs(a - b) for a, b in zip(_edges(one), _edges(other), strict=True))


def _edges(extent: Extent) -> Iterable[float]:
    return (
        extent.top,
        extent.left,
        extent.top + extent.height,
        extent.left + extent.width,
    )
