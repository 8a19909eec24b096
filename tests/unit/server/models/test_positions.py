"""Images that show positions, and the extents that are read from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcam_server.domain.layers import Extent
from gradcam_server.models.positions import (
    MovedPositionsError,
    UnknownPositionsError,
    locate,
    position_images,
)

SIZE = (48, 40)


def images() -> np.ndarray:
    return position_images((*SIZE, 3), {"float32"})


@given(
    top=st.integers(0, 30),
    left=st.integers(0, 30),
    height=st.integers(6, 18),
    width=st.integers(6, 10),
    above=st.integers(0, 40),
    factor=st.floats(-2, 2).filter(lambda one: abs(one) > 0.01),
)
def test_crops_and_margins_are_found(
    top: int, left: int, height: int, width: int, above: int, factor: float
) -> None:
    """Any crop with any margin is found, however values are scaled."""
    part = factor * images()[:, top : top + height, left : left + width]
    margins = np.pad(part, ((0, 0), (above, 0), (0, 0), (0, 0)), constant_values=7)
    if (top, height) == (0, SIZE[0]):
        return
    found = locate(margins, SIZE)
    assert found.top == pytest.approx(top - above, abs=0.76)
    assert found.left == pytest.approx(left, abs=0.05)
    assert found.height == pytest.approx(height + above, abs=0.76)
    assert found.width == pytest.approx(width, abs=0.05)


def test_the_whole_image_is_the_whole_image() -> None:
    """Its own size comes back without rounding."""
    assert locate(images(), SIZE) == Extent(0, 0, *SIZE)


def test_a_crop_by_one_pixel_is_no_whole_image() -> None:
    """A crop by one pixel is found."""
    assert locate(images()[:, 1:], SIZE) == Extent(1, 0, 47, 40)


@pytest.mark.parametrize(
    "move",
    [
        lambda one: one[:, ::-1],
        lambda one: one[:, :, ::-1],
        lambda one: one.transpose(0, 2, 1, 3),
        lambda one: np.roll(one, 20, axis=1),
        lambda one: np.concatenate([one[:, :8], one[:, 30:38]], axis=1),
        lambda one: np.stack(
            [np.roll(row, i, axis=1) for i, row in enumerate(one.swapaxes(0, 1))], 1
        ),
    ],
    ids=["flipped", "mirrored", "turned", "rolled", "two parts", "slanted"],
)
def test_what_is_no_rectangle_is_said(move) -> None:  # type: ignore[no-untyped-def]
    """Flipped, turned and warped images are an error."""
    with pytest.raises(MovedPositionsError):
        locate(move(images()), SIZE)


@pytest.mark.parametrize(
    "lose",
    [
        lambda one: one * 0,
        lambda one: one - one.mean(axis=(1, 2, 3), keepdims=True),
        lambda one: one.reshape(8, 24, 40, 3),
        lambda one: np.where(one > 64.5, np.nan, one),
    ],
    ids=["constant", "centred", "other batch", "not a number"],
)
def test_what_shows_nothing_is_unknown(lose) -> None:  # type: ignore[no-untyped-def]
    """Values that do not show positions are an error."""
    with pytest.raises(UnknownPositionsError):
        locate(lose(images()), SIZE)
