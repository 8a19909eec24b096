"""Pictures that the client draws, compared with the server's."""

import io
import itertools
import sys
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import ImageExplanation, drawing
from gradcam_client.colormaps import table
from gradcam_client.requests import ColormapName
from gradcam_server.domain import requests as domain
from gradcam_server.domain.layers import Extent
from gradcam_server.images.geometry import fit
from gradcam_server.images.render import render

INPUT = (224, 224)
RNG = np.random.default_rng(0)
IMAGE = np.asarray(cv2.resize(RNG.integers(0, 256, (4, 6, 3), np.uint8), (90, 60)))
# Places that no size divides, and a map that covers more, or less, than the input.
CENTER_CROP = domain.ResizeMode.CENTER_CROP
EXTENTS = [None, Extent(-7, -9, 250, 260), Extent(20, 30, 150, 160)]
ALL_PLACES = list(itertools.product(domain.ResizeMode, EXTENTS))


def answer(
    signed: NDArray[np.float32],
    mode: domain.ResizeMode = domain.ResizeMode.STRETCH,
    extent: Extent | None = None,
    image: Any = IMAGE,
    **fields: Any,
) -> ImageExplanation:
    """Makes the result of a server that rendered a raw map."""
    _, placement = fit(IMAGE, INPUT, mode)
    form = domain.HeatmapForm(domain.HeatmapFormat.RAW_FLOAT32)
    raw = render(signed, IMAGE, placement, [form], extent)
    covered = placement.on_image(extent)
    heatmap = raw.heatmaps[0]
    explanation = pb.Explanation(
        class_index=3,
        score_type=pb.SCORE_TYPE_LOGIT,
        class_name="<script>cat</script>",
        raw_max=raw.raw_max,
        degenerate=raw.degenerate,
        image_extent=pb.Extent(
            top_px=covered.top,
            left_px=covered.left,
            height_px=covered.height,
            width_px=covered.width,
        ),
        heatmaps=[
            pb.Heatmap(
                format=pb.HEATMAP_FORMAT_RAW_FLOAT32,
                height_px=heatmap.height,
                width_px=heatmap.width,
                data=heatmap.data,
            )
        ],
    )
    predictions = [pb.Prediction(class_index=3, class_name='"<b>cat', probability=0.5)]
    message = pb.ExplainImageResponse(
        model="small",
        image_height_px=60,
        image_width_px=90,
        predictions=predictions,
        explanations=[explanation],
    )
    return ImageExplanation.from_response(message, image)


def signed_map(height: int = 7, width: int = 5) -> NDArray[np.float32]:
    return RNG.normal(size=(height, width)).astype(np.float32)


@pytest.mark.parametrize("name", get_args(ColormapName))
def test_the_colours_are_the_servers(name: ColormapName) -> None:
    """No entry of a table differs by more than 2 grey levels."""
    number = getattr(cv2, f"COLORMAP_{name.upper()}")
    theirs = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], number)[0, :, ::-1]
    assert np.abs(table(name).astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("colormap", ["jet", "turbo"])
@pytest.mark.parametrize(
    ("mode", "extent"),
    # On the server a map of more than a cropped input ends at the crop, here it does not.
    [pair for pair in ALL_PLACES if pair != (CENTER_CROP, EXTENTS[1])],
)
def test_a_drawing_is_the_servers_overlay(
    mode: domain.ResizeMode, extent: Extent | None, colormap: Any
) -> None:
    """However the image was resized, and whatever part of the input the map covers."""
    signed = signed_map()
    _, placement = fit(IMAGE, INPUT, mode)
    form = domain.HeatmapForm(
        domain.HeatmapFormat.OVERLAY_PNG, alpha=0.3, colormap=domain.Colormap(colormap)
    )
    (overlay,) = render(signed, IMAGE, placement, [form], extent).heatmaps
    theirs = np.asarray(PIL.Image.open(io.BytesIO(overlay.data)), np.uint8)
    ours = answer(signed, mode, extent).draw(alpha=0.3, colormap=colormap)
    # One grey level of the map may be two of the colours in the steep parts of a table.
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_a_map_without_evidence_is_cold_everywhere() -> None:
    """As on the server: the coldest colour over the image, never NaN."""
    cold = table("jet")[0]
    drawn = answer(np.full((3, 3), -1, np.float32)).draw(alpha=1)
    np.testing.assert_array_equal(drawn, np.broadcast_to(cold, drawn.shape))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".PNG"])
def test_what_was_not_asked_for_is_drawn(tmp_path: Path, suffix: str) -> None:
    """``save`` needs no overlay of the server, for pixels, bytes of a file, and paths."""
    path = tmp_path / "photo.png"
    path.write_bytes(drawing.png(IMAGE))
    signed, out = signed_map(), tmp_path / f"out{suffix}"
    expected = answer(signed).draw()
    for image in (IMAGE, path.read_bytes(), path, str(path)):
        answer(signed, image=image).save(out)
        written = np.asarray(PIL.Image.open(out), np.uint8)
        # JPEG halves the resolution of colours.
        max_mean = 0 if "png" in suffix.lower() else 5
        assert np.abs(written.astype(int) - expected).mean() <= max_mean


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 70), (40, 2)])
def test_a_png_holds_its_pixels(size: tuple[int, int], channels: int) -> None:
    """Another library reads what was written."""
    pixels = RNG.integers(0, 256, (*size, channels), np.uint8)
    read = np.asarray(PIL.Image.open(io.BytesIO(drawing.png(pixels))))
    np.testing.assert_array_equal(read, pixels)


def test_a_photograph_is_turned_as_the_server_turns_it(tmp_path: Path) -> None:
    """Its EXIF orientation is applied before the map is drawn over it."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path / "turned.png"
    PIL.Image.fromarray(np.rot90(IMAGE).copy()).save(path, exif=exif)
    signed = signed_map()
    np.testing.assert_array_equal(answer(signed, image=path).draw(), answer(signed).draw())


def test_without_pillow_arrays_are_drawn_and_files_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PNG of an array needs NumPy alone; the errors name the extra, and the server's overlay."""
    for module in ("PIL", "PIL.Image", "PIL.ImageOps"):
        monkeypatch.setitem(sys.modules, module, None)
    answer(signed_map()).save(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    for image, name in ((IMAGE, "out.jpg"), (drawing.png(IMAGE), "out.png")):
        with pytest.raises(ImportError, match=r"gradcam-server\[pictures\].*overlay-jpeg"):
            answer(signed_map(), image=image).save(tmp_path / name)
    # A browser reads the file itself.
    assert answer(signed_map(), image=drawing.png(IMAGE))._repr_html_().count("data:image/png") == 2


def test_a_drawing_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    """There is no image, another image, no file any more, or no map."""
    signed = signed_map()
    with pytest.raises(ValueError, match="does not know its image"):
        answer(signed, image=None).draw()
    with pytest.raises(ValueError, match="90 x 60: it has changed"):
        answer(signed, image=IMAGE[:, :-1]).draw()
    with pytest.raises(FileNotFoundError):
        answer(signed, image=tmp_path / "gone.png").save(tmp_path / "out.png")
    nothing = pb.ExplainImageResponse(explanations=[pb.Explanation()])
    with pytest.raises(ValueError, match=r"explain with heatmaps=\[Raw\(\)\]"):
        ImageExplanation.from_response(nothing, IMAGE).draw()
    raw = pb.Heatmap(format=pb.HEATMAP_FORMAT_RAW_FLOAT32, height_px=1, width_px=1, data=bytes(4))
    nowhere = pb.ExplainImageResponse(explanations=[pb.Explanation(heatmaps=[raw])])
    with pytest.raises(ValueError, match="does not say which part"):
        ImageExplanation.from_response(nowhere, IMAGE).draw()


@pytest.mark.parametrize("mode", domain.ResizeMode)
def test_a_small_picture_shows_the_map_at_the_same_place(mode: domain.ResizeMode) -> None:
    """A notebook's picture of a large image is the large drawing at a smaller size."""
    explanation = answer(np.abs(signed_map()), mode).explanations[0]
    large, small = explanation.on_image(60, 90), explanation.on_image(60, 90, 1 / 3)
    assert small.shape == (20, 30)
    # Of each 3 x 3 pixels the middle pixel has the centre of the small pixel.
    np.testing.assert_allclose(small, large[1::3, 1::3], atol=1e-5)
