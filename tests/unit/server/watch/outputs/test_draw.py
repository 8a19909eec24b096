"""The heat over a frame."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from gradcam_client.drawing import blended, colored, enlarge
from gradcam_client.extents import Extent
from gradcam_client.requests import COLORMAPS
from gradcam_server.watch.frames import Pixels, Status
from gradcam_server.watch.outputs.caption import caption_of
from gradcam_server.watch.outputs.draw import Painter, Style, draw
from support.watch_results import (
    DOG,
    answer,
    explained,
    explanation,
    failed,
    frame,
    gray,
    noise,
)

CAPTION_ROWS = 60  # at most half of the 120 rows


def without_caption(image: Pixels) -> np.ndarray:
    """Returns the rows above the caption, for arithmetic."""
    return image[:-CAPTION_ROWS].astype(int)


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_the_heat_is_drawn_as_the_client_draws_it(colormap: str) -> None:
    """Colours, place and weight are those of ``ImageExplanation.draw``."""
    extent = Extent(-10.5, 20, 100, 120)
    result = explained(
        frame(noise()), explanation=answer(explanations=[explanation(extent=extent)])
    )
    drawn = draw(result, Style(colormap, 0.3))  # type: ignore[arg-type]
    assert result.heat is not None
    expected = blended(noise(), colored(enlarge(result.heat, extent, 120, 160), colormap), 0.3)
    assert np.abs(without_caption(drawn) - without_caption(expected)).max() <= 2


WHOLE, PART = Extent(0, 0, 1080, 1920), Extent(-10.5, 420.25, 1101, 1080)


@pytest.mark.parametrize(("extent", "cells"), [(WHOLE, (72, 128)), (WHOLE, (7, 7)), (PART, (7, 7))])
def test_a_large_photograph_looks_as_if_the_client_had_drawn_it(
    images: Path, extent: Extent, cells: tuple[int, int]
) -> None:
    """A full HD frame differs by two grey levels at most, whether the map covers all of it."""
    read = cv2.imread(str(images / "cat.jpg"))
    assert read is not None
    photograph = np.asarray(cv2.resize(read[..., ::-1], (1920, 1080)), np.uint8)
    heat = np.random.default_rng(0).random(cells, np.float32)
    one = answer((1080, 1920), [explanation(extent=extent)])
    drawn = draw(explained(frame(photograph), explanation=one, heat=heat), Style("jet", 0.4))
    colors = colored(enlarge(heat, extent, 1080, 1920), "jet")
    difference = cv2.absdiff(drawn, blended(photograph, colors, 0.4))[:-150]
    assert difference.max() <= 2


def test_a_painter_draws_any_frame_after_any_other() -> None:
    """What earlier frames left in its memory, of another size or place, is not seen."""
    left = explanation(extent=Extent(0, 0, 120, 80))
    results = [
        explained(frame(noise((240, 320)))),
        explained(frame(noise()), explanation=answer(explanations=[left])),
        failed(frame(noise((90, 70)))),
        explained(frame(noise((320, 240), 1)), heat=np.eye(7, dtype=np.float32)),
        explained(frame(noise())),
        explained(frame(gray(9, (1, 3)))),
    ]
    painter = Painter()
    for result in [*results, *reversed(results)]:
        np.testing.assert_array_equal(painter.draw(result), draw(result))


def test_a_painter_uses_its_memory_again() -> None:
    """Only a larger frame takes more; a single drawing has memory of its own."""
    large, small = explained(frame(noise((240, 320)))), explained(frame(noise()))
    painter = Painter()
    assert np.shares_memory(painter.draw(large), painter.draw(small))
    assert np.shares_memory(painter.draw(small), painter.draw(large))
    assert not np.shares_memory(draw(small), draw(small))


def test_a_reused_map_fits_a_frame_of_another_size() -> None:
    """An extent in pixels of the earlier frame is scaled to this one."""
    left = Extent(0, 0, 60, 40)
    result = explained(
        frame(gray(0)),
        explanation=answer((60, 80), [explanation(extent=left)]),
        heat=np.ones((1, 1), np.float32),
        status=Status.REUSED,
    )
    red = without_caption(draw(result))[..., 0]
    assert red[:, :80].min() > 40
    assert red[:, 80:].max() == 0


def test_the_map_is_that_of_the_target() -> None:
    """Of several explanations, the one of the held class decides the place of its map."""
    both = [
        explanation(extent=Extent(0, 0, 120, 80)),
        explanation(DOG, extent=Extent(0, 80, 120, 80)),
    ]
    result = explained(
        frame(gray(0)),
        explanation=answer(explanations=both),
        target="207 golden retriever",
        heat=np.ones((1, 1), np.float32),
    )
    red = without_caption(draw(result))[..., 0]
    assert red[:, :80].max() == 0
    assert red[:, 80:].min() > 40
    assert str(caption_of(result)[0]).endswith("6.2%")


def test_a_map_that_is_not_finite_is_no_heat() -> None:
    """NaN and infinity are drawn as zero, and nothing above 1 wraps around."""
    bad = np.array([[np.nan, np.inf], [-np.inf, -1]], np.float32)
    zero = draw(explained(heat=np.zeros((2, 2), np.float32)))
    np.testing.assert_array_equal(draw(explained(heat=bad)), zero)
    one, two = (draw(explained(heat=np.full((2, 2), top, np.float32))) for top in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_the_frame_itself_is_not_changed() -> None:
    """Other outputs get the same frame."""
    image = noise()
    for result in (explained(frame(image)), failed(frame(image))):
        assert draw(result) is not image
        np.testing.assert_array_equal(image, noise())


def test_a_failed_frame_is_shown_without_heat() -> None:
    """Above the caption the picture is the camera's."""
    drawn = draw(failed(frame(noise())))
    np.testing.assert_array_equal(without_caption(drawn), without_caption(noise()))
    assert (drawn != noise()).any()
