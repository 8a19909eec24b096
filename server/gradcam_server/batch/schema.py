"""The rows, one for each image, and the columns of the shards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.sources.base import Item

OK, ERROR = "ok", "error"
REUSED = "reused"  # of gradcam watch: the answer is that of an earlier frame
# Fields of a request whose errors concern the image, not the options.
IMAGE_FIELDS = ("encoded_image", "raw_image", "raw_image.data")

SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        ("error", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("class_index", pa.list_(pa.int32())),
        ("class_name", pa.list_(pa.string())),
        ("probability", pa.list_(pa.float32())),
        ("target", pa.int32()),
        ("target_name", pa.string()),
        ("score", pa.float32()),
        ("heatmap", pa.binary()),
        ("heatmap_dtype", pa.string()),
        ("heatmap_height", pa.int32()),
        ("heatmap_width", pa.int32()),
        ("heatmap_scale", pa.float32()),
        ("raw_min", pa.float32()),
        ("raw_max", pa.float32()),
        ("degenerate", pa.bool_()),
        ("layer", pa.string()),
        ("method", pa.string()),
        ("model", pa.string()),
        ("model_version", pa.string()),
        ("overlay", pa.string()),
    ]
)
# A map whose maximum is in this range keeps 11 bits in float16, its smaller values included.
_FLOAT16_MAXIMA = (2.0**-3, 2.0**15)


@dataclass(slots=True)
class Row:
    """The result for one image. Everything after ``error`` is None if it failed.

    Attributes:
        index: Its position in the list of inputs, from 0.
        id: Its name.
        path: Its location.
        status: ``OK``, ``REUSED`` or ``ERROR``.
        error: Why it failed.
        width: Width of the image after EXIF orientation, in pixels.
        height: Its height, likewise.
        class_index: The classes of highest probability, best first.
        class_name: Their names.
        probability: Their probabilities.
        target: The index of the explained class.
        target_name: Its name.
        score: The logit of that class.
        heatmap: The map at the layer's resolution, row-major: ``array * heatmap_scale`` is the
            method's map after its ReLU.
        heatmap_dtype: "float16" (little-endian) or "uint8".
        heatmap_height: Rows of the map.
        heatmap_width: Columns of the map.
        heatmap_scale: What to multiply the values by. For float16 it is 1, or a power of two
            if the values do not fit; for uint8 it is the maximum over 255.
        raw_min: Minimum of the map before the ReLU.
        raw_max: Maximum of the map before the ReLU.
        degenerate: Whether the map is zero: no evidence for the class at this layer.
        layer: The explained layer.
        method: The method.
        model: The model that answered.
        model_version: Its version; empty if it has none.
        overlay: The overlay's file, relative to the output folder.
        overlay_jpeg: The overlay's file content; not a column of the shards.
    """

    index: int
    id: str
    path: str
    status: str
    error: str | None = None
    width: int | None = None
    height: int | None = None
    class_index: Sequence[int] | None = None
    class_name: Sequence[str] | None = None
    probability: Sequence[float] | None = None
    target: int | None = None
    target_name: str | None = None
    score: float | None = None
    heatmap: bytes | None = None
    heatmap_dtype: str | None = None
    heatmap_height: int | None = None
    heatmap_width: int | None = None
    heatmap_scale: float | None = None
    raw_min: float | None = None
    raw_max: float | None = None
    degenerate: bool | None = None
    layer: str | None = None
    method: str | None = None
    model: str | None = None
    model_version: str | None = None
    overlay: str | None = None
    overlay_jpeg: bytes | None = None


class Heatmap(Protocol):
    """A heat map in one form, of the server or of the client."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def data(self) -> bytes: ...


class Explained(Protocol):
    """An answer: the server's ``ExplainedImage`` or the client's ``ImageExplanation``."""

    @property
    def model(self) -> str: ...
    @property
    def model_version(self) -> str: ...
    @property
    def image_height(self) -> int: ...
    @property
    def image_width(self) -> int: ...
    @property
    def predictions(self) -> Sequence[Any]: ...
    @property
    def explanations(self) -> Sequence[Any]: ...


def row_of(item: Item, explained: Explained, options: ExplainOptions) -> Row:
    """Makes the row of an image that was explained.

    Args:
        item: The image.
        explained: Its predictions, and one explanation: the raw map, and the overlay if
            ``options`` asks for overlays.
        options: How it was explained.
    """
    explanation = explained.explanations[0]
    raw: Heatmap = explanation.heatmaps[0]
    values = np.frombuffer(raw.data, "<f4")
    heatmap, scale = pack(values, options.heatmap)
    return Row(
        index=item.index,
        id=item.id,
        path=item.path,
        status=OK,
        width=explained.image_width,
        height=explained.image_height,
        class_index=[prediction.index for prediction in explained.predictions],
        class_name=[prediction.name for prediction in explained.predictions],
        probability=[prediction.probability for prediction in explained.predictions],
        target=explanation.index,
        target_name=explanation.name,
        score=explanation.score,
        heatmap=heatmap,
        heatmap_dtype=options.heatmap,
        heatmap_height=raw.height,
        heatmap_width=raw.width,
        heatmap_scale=scale,
        raw_min=explanation.raw_min,
        raw_max=explanation.raw_max,
        degenerate=explanation.degenerate,
        layer=explanation.layer,
        method=str(explanation.method),
        model=explained.model,
        model_version=explained.model_version,
        overlay_jpeg=explanation.heatmaps[1].data if options.overlays else None,
    )


def error_row(item: Item, error: str) -> Row:
    """Makes the row of an image that failed."""
    return Row(item.index, item.id, item.path, ERROR, error)


def describe(error: Exception) -> str:
    """Returns the text of a reading error for a row: without the path, which the row has."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def pack(values: NDArray[np.float32], kind: str) -> tuple[bytes, float]:
    """Returns a map's bytes, and the scale to multiply their values by.

    Args:
        values: float32, not negative.
        kind: "float16" or "uint8".
    """
    top = float(values.max(initial=0))
    if kind == "uint8":
        scale = float(np.float32(top / 255)) or 1.0
        return np.rint(values / np.float32(scale)).clip(0, 255).astype(np.uint8).tobytes(), scale
    lowest, highest = _FLOAT16_MAXIMA
    scale = 1.0 if top == 0 or lowest <= top <= highest else 2.0 ** math.floor(math.log2(top))
    return (values / np.float32(scale)).astype("<f2").tobytes(), scale


def unpack(row: Any) -> NDArray[np.float32]:
    """Returns the map of a row (its values by column): float32 (heatmap_height, heatmap_width)."""
    kind = "<f2" if row["heatmap_dtype"] == "float16" else np.uint8
    values = np.frombuffer(row["heatmap"], kind).astype(np.float32)
    # In pandas, integer columns with nulls become floats.
    shape = int(row["heatmap_height"]), int(row["heatmap_width"])
    return np.asarray(values.reshape(shape) * np.float32(row["heatmap_scale"]))


def to_batch(rows: Sequence[Row], *, overlays: bool = False) -> pa.RecordBatch:
    """Returns rows as Arrow columns.

    Args:
        rows: The rows.
        overlays: Whether to add the column ``overlay_jpeg``.
    """
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in SCHEMA]
    schema = SCHEMA
    if overlays:
        schema = SCHEMA.append(pa.field("overlay_jpeg", pa.binary()))
        columns.append(pa.array([row.overlay_jpeg for row in rows], pa.binary()))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def from_columns(batch: Any) -> list[Row]:
    """Returns the rows of the columns that ``to_batch`` made."""
    names = {field.name for field in fields(Row)}
    return [
        Row(**{name: value for name, value in values.items() if name in names})
        for values in batch.to_pylist()
    ]
