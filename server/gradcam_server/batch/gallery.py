"""Writes one HTML page of a job's most unusual and most confident images.

The shards are read one after the other, never all at once. The page embeds its pictures and the
viewer of the server's page, and loads nothing. Names come from file systems and archives, so all of
them are escaped.
"""

import base64
import heapq
import html
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradcam_server.batch import manifest
from gradcam_server.batch.errors import BatchError, OutputError
from gradcam_server.batch.gallery_script import script, source_hash
from gradcam_server.batch.schema import OK, unpack
from gradcam_server.batch.shards import write_atomically
from gradcam_server.batch.sources.base import Source
from gradcam_server.batch.sources.opening import open_source
from gradcam_server.domain.requests import HeatmapForm, HeatmapFormat, ResizeMode
from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.decode import decode_image
from gradcam_server.images.geometry import fit
from gradcam_server.images.render import render

NAME = "_gallery.html"  # readers of Parquet folders ignore names that begin with "_"
_SIDE = 320  # longest side of a picture, in pixels
_MAX_PIXELS = 50_000_000
# Models differ in input size, but only its proportions affect the position of a map.
_INPUT = (224, 224)
_SHOWN_ERRORS = 20
_READ_ROWS = 256
_COLUMNS = (
    *("index", "id", "path", "status", "error", "class_name", "class_index", "probability"),
    *("target", "target_name", "score", "degenerate", "overlay"),
    *("heatmap", "heatmap_dtype", "heatmap_height", "heatmap_width", "heatmap_scale"),
)

RowValues: TypeAlias = dict[str, Any]
Measure: TypeAlias = Callable[[RowValues], float | None]


@dataclass(frozen=True)
class Section:
    """The images with the highest values of a measure.

    Attributes:
        title: The heading.
        explanation: What high values may mean.
        measure: The measure of a row; None leaves the image out.
        unit: The name of the value, for the captions.
    """

    title: str
    explanation: str
    measure: Measure
    unit: str


def _top(row: RowValues) -> float:
    return float(row["probability"][0])


def _margin(row: RowValues) -> float | None:
    probabilities = row["probability"]
    return float(probabilities[1] - probabilities[0]) if len(probabilities) > 1 else None


def _spread(row: RowValues) -> float | None:
    """The entropy of the map as a distribution, over that of a uniform one: 0 to 1."""
    values = unpack(row).ravel().astype(np.float64)
    if row["degenerate"] or values.size < 2 or not values.sum() > 0:
        return None
    shares = values[values > 0] / values.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(values.size))


def _flatness(row: RowValues) -> float | None:
    """The mean over the maximum, 0 to 1; a map of zeros is the flattest and gets 2."""
    values = unpack(row)
    if row["degenerate"] or not values.max(initial=0) > 0:
        return 2.0
    return float(values.mean() / values.max())


SECTIONS = (
    Section(
        "Least confident",
        "No class is probable: the model may not know what the image shows.",
        lambda row: -_top(row),
        "probability",
    ),
    Section(
        "Near-ties",
        "The two best classes are about as probable.",
        _margin,
        "margin",
    ),
    Section(
        "Flattest maps",
        "The map is about the same everywhere, or zero: it hardly says where the model looked.",
        _flatness,
        "mean over maximum",
    ),
    Section(
        "Most diffuse maps",
        "The evidence is spread over all of the image, not over an object.",
        _spread,
        "entropy",
    ),
    Section(
        "Most confident",
        "One class has nearly all of the probability: clear cases, for the model.",
        _top,
        "probability",
    ),
)


def write_gallery(
    folder: Path, output: Path | None = None, count: int = 12, where: str | None = None
) -> Path:
    """Writes the page.

    Args:
        folder: The output folder of a job, finished or not.
        output: The file to write; None is ``_gallery.html`` in the folder.
        count: Images in each section.
        where: The inputs' location, if it is no longer that of the manifest.

    Returns:
        The path of the page.

    Raises:
        OutputError: There are no shards, or the file cannot be written.
    """
    about = manifest.read(folder)
    chosen, totals, errors = _choose(folder, count)
    pictures = _Pictures(folder, about, where)
    page = _page(folder, about, chosen, totals, errors, pictures)
    path = output or folder / NAME
    write_atomically(path, page.encode("utf-8", "backslashreplace"))
    return path


def _rows(folder: Path) -> Iterator[RowValues]:
    shards = sorted(folder.glob("part-*.parquet"))
    if not shards:
        raise OutputError(f"{folder}: there are no shards in it yet")
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(_READ_ROWS, columns=list(_COLUMNS)):
                yield from batch.to_pylist()


def _choose(
    folder: Path, count: int
) -> tuple[list[list[tuple[float, RowValues]]], tuple[int, int], list[RowValues]]:
    """Returns the images of each section with their numbers, (images, errors), and some errors."""
    heaps: list[list[tuple[float, int, RowValues]]] = [[] for _ in SECTIONS]
    errors: list[RowValues] = []
    images = failed = 0
    for row in _rows(folder):
        images += 1
        if row["status"] != OK:
            failed += 1
            if len(errors) < _SHOWN_ERRORS:
                errors.append(row)
            continue
        for section, heap in zip(SECTIONS, heaps, strict=True):
            value = section.measure(row)
            if value is not None:
                # Equal values: the first image wins. Indices are unique: rows are never compared.
                entry = value, -row["index"], row
                (heapq.heappush if len(heap) < count else heapq.heappushpop)(heap, entry)
    chosen = [[(value, row) for value, _, row in sorted(heap, reverse=True)] for heap in heaps]
    return chosen, (images, failed), errors


class _Pictures:
    """Pictures of images: the job's overlays, or new ones from the inputs and the stored maps."""

    def __init__(self, folder: Path, about: RowValues, where: str | None) -> None:
        self._folder = folder
        self._mode = ResizeMode(about["configuration"]["resize"])
        self._source: Source | None = None
        inputs = about["inputs"]
        try:
            source = open_source(
                where or inputs["where"], column=inputs.get("column"), outside=folder
            )
        except BatchError:
            return  # the inputs are gone; the maps remain
        if len(source) >= inputs["count"]:
            self._source = source

    def of(self, row: RowValues) -> tuple[list[tuple[str, bytes]], str]:
        """Returns the pictures of a row, and attributes by which the script draws its map anew.

        The pictures are JPEGs and what they show: the image and the overlay, or only the map, or
        only the overlay. There are attributes if the image is there.
        """
        image, overlay = self._read(row), None
        if row["overlay"] and (self._folder / row["overlay"]).is_file():
            data = np.fromfile(self._folder / row["overlay"], np.uint8)
            overlay = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if overlay is None and image is not None:
            overlay = self._draw(row, image)
        if overlay is None:
            return [("heat map", _jpeg(_map_only(unpack(row))))], ""
        pictures = [("heat map over the image", _jpeg(np.asarray(overlay)))]
        if image is None:
            return pictures, ""
        return [("image", _jpeg(image[..., ::-1])), *pictures], self._attributes(row, image)

    def _attributes(self, row: RowValues, image: NDArray[np.uint8]) -> str:
        values = unpack(row)
        data = base64.b64encode(values.astype("<f4").tobytes()).decode()
        rows, columns = values.shape
        height, width = image.shape[:2]
        return (
            f'data-map="{data}" data-rows="{rows}" data-columns="{columns}" data-height="{height}" '
            f'data-width="{width}" data-input="{_INPUT[0]}" data-resize="{self._mode.value}"'
        )

    def _read(self, row: RowValues) -> NDArray[np.uint8] | None:
        """Returns the image of a row, uint8 RGB (H, W, 3), or None if it cannot be read."""
        if self._source is None:
            return None
        index = row["index"]
        (item,) = self._source.read(index, index + 1)
        if item.id != row["id"]:
            return None
        try:
            return decode_image(item.load(), _MAX_PIXELS)
        except (OSError, ValueError, InvalidRequestError):
            return None

    def _draw(self, row: RowValues, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns the heat map of a row over its image, uint8 BGR (H, W, 3)."""
        _, placement = fit(image, _INPUT, self._mode)
        values = unpack(row)
        form = HeatmapForm(HeatmapFormat.OVERLAY_PNG)
        (overlay,) = render(values, image, placement, [form]).heatmaps
        return np.asarray(cv2.imdecode(np.frombuffer(overlay.data, np.uint8), cv2.IMREAD_COLOR))


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Returns a JPEG of a BGR picture, reduced to ``_SIDE`` pixels."""
    scale = _SIDE / max(picture.shape[:2])
    if scale < 1:
        size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return bytes(cv2.imencode(".jpg", picture)[1])


def _scale() -> str:
    """Returns the colours of the maps, from no heat to the maximum of each map."""
    colors = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_JET)
    bar = base64.b64encode(_jpeg(np.asarray(np.repeat(colors, 12, axis=0), np.uint8))).decode()
    return (
        f'<p class=scale>0 <img alt="colours from blue to red" src="data:image/jpeg;base64,{bar}"> '
        "maximum of the map, below each picture</p>"
    )


def _map_only(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    grey = np.rint(255 * values / max(float(values.max(initial=0)), 1e-37)).astype(np.uint8)
    side = _SIDE // 2
    large = cv2.resize(grey, (side, side), interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.applyColorMap(large, cv2.COLORMAP_JET))


_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
section div { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 30em; max-width: 100%; overflow-wrap: anywhere; }
figure img, figure canvas { width: 49%; vertical-align: top; }
form { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .5em 1.5em; padding: .7em 0; }
form, body { background: Canvas; color: CanvasText; }
form[hidden], p[hidden] { display: none; }
form label { display: flex; gap: .5em; align-items: center; min-height: 44px; }
form canvas { width: 12em; height: 1em; }
.scale img { width: 12em; height: 1em; vertical-align: middle; }
figcaption { font-size: 85%; }
table { border-collapse: collapse; font-size: 85%; }
td { border-top: 1px solid #ccc; padding: .2em 1em .2em 0; overflow-wrap: anywhere; }
small { opacity: .8; }
:root { color-scheme: light dark; }
"""
_CONTROLS = """<form hidden aria-label="Appearance of all maps">
<label>Colours <select name=colormap><option value=jet>Jet<option value=turbo>Turbo
<option value=viridis>Viridis<option value=inferno>Inferno</select></label>
<label>Opacity <input name=opacity type=range min=0 max=1 step=.01 value=.4></label>
<label>Only above <input name=threshold type=range min=0 max=1 step=.01 value=0></label>
<label><input name=outline type=checkbox> Outline the region</label>
<label>0 <canvas aria-hidden=true></canvas> maximum of the map</label></form>"""


def _page(
    folder: Path,
    about: RowValues,
    chosen: list[list[tuple[float, RowValues]]],
    totals: tuple[int, int],
    errors: list[RowValues],
    pictures: _Pictures,
) -> str:
    images, failed = totals
    configuration = about["configuration"]
    model = configuration.get("model") or configuration.get("server_model") or "the default"
    facts = (
        f"{images:,} images of {about['inputs']['where']}, {failed:,} of them failed; model "
        f"{model}, method {configuration['method']}"
    )
    viewer = script()
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        # Should any text escape the escaping, still nothing else would run or be loaded.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'; script-src {source_hash(viewer)}\">",
        f"<title>{_text(folder.name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(folder.name)}</h1><p>{_text(facts)}</p>",
    ]
    if errors:
        more = f" (the first {len(errors)})" if failed > len(errors) else ""
        parts.append(f"<section><h2>Errors{more}</h2><table>")
        parts += [
            f"<tr><td>{_text(row['path'])}</td><td>{_text(row['error'])}</td></tr>"
            for row in errors
        ]
        parts.append("</table></section>")
    parts += [_scale(), _CONTROLS]
    shown: set[int] = set()
    for section, rows in zip(SECTIONS, chosen, strict=True):
        if rows:
            parts += [
                f"<section><h2>{section.title}</h2><p>{section.explanation}</p><div>",
                *(_figure(section, value, row, pictures, shown) for value, row in rows),
                "</div></section>",
            ]
    return "\n".join([*parts, f"<script>{viewer}</script></body></html>\n"])


def _figure(
    section: Section, value: float, row: RowValues, pictures: _Pictures, shown: set[int]
) -> str:
    """Returns a figure; an image that an earlier section shows is named, and not shown again."""
    anchor = f"image-{row['index']}"
    if row["index"] in shown:
        begin = f'<figure><figcaption><a href="#{anchor}"><b>{_text(row["id"])}</b></a>'
    else:
        shown.add(row["index"])
        files, attributes = pictures.of(row)
        images = "\n".join(
            f'<img alt="{what}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
            for what, jpeg in files
        )
        begin = f'<figure id="{anchor}" {attributes}>{images}<figcaption><b>{_text(row["id"])}</b>'
    best = itertools.islice(zip(row["class_name"], row["probability"], strict=True), 3)
    classes = ", ".join(f"{name or '?'} {probability:.1%}" for name, probability in best)
    number = "the map is zero" if value > 1 else f"{section.unit} {abs(value):.3f}"
    return (
        f"{begin}<br>{_text(classes)}<br>"
        f"<small>{_text(number)}; explained: {_text(row['target_name'] or row['target'])}; "
        f"maximum {unpack(row).max(initial=0):.3g}</small></figcaption></figure>"
    )


def _text(value: object) -> str:
    return html.escape(str(value))
