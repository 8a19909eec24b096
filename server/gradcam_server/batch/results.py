"""Hands a job's rows to pandas and to FiftyOne."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradcam_server.batch import manifest
from gradcam_server.batch.errors import InputError, OutputError
from gradcam_server.batch.schema import ERROR, OK, unpack

if TYPE_CHECKING:
    import pandas as pd

_READ_ROWS = 256
_WHOLE_IMAGE = "stretch"


def to_pandas(folder: str | Path, *, maps: bool = False) -> "pd.DataFrame":
    """Reads all rows of a job, finished or not.

    The columns have pandas' types with nulls, so that ``width`` and ``target`` stay integers where
    images failed.

    Args:
        folder: The output folder of ``gradcam batch``.
        maps: Whether to add the column ``map`` with the heat maps as float32 arrays (h, w), None
            where an image failed.

    Raises:
        OutputError: There are no shards.
        ImportError: pandas is not installed.
    """
    import pandas as pd

    nullable = {
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.float32(): pd.Float32Dtype(),
        pa.bool_(): pd.BooleanDtype(),
        pa.string(): pd.StringDtype(),
    }
    table = pa.concat_tables(map(pq.read_table, _shards(Path(folder))))
    frame = table.to_pandas(types_mapper=nullable.get)
    if maps:
        rows = (row for batch in table.to_batches(_READ_ROWS) for row in batch.to_pylist())
        values = [unpack(row) if row["status"] != ERROR else None for row in rows]
        frame["map"] = pd.Series(values, frame.index, dtype=object)
    return frame


def to_fiftyone(
    folder: str | Path,
    *,
    dataset: Any = None,
    images: str | Path | None = None,
    field: str = "gradcam",
) -> Any:
    """Adds a job's images with their heat maps to a dataset of FiftyOne.

    Each sample has the fields ``gradcam`` (a ``Heatmap``), ``gradcam_prediction`` (a
    ``Classification``), ``gradcam_target``, ``gradcam_score`` and ``gradcam_degenerate``, or only
    ``gradcam_error``.

    Args:
        folder: The output folder of ``gradcam batch``.
        dataset: A dataset of FiftyOne; None makes a new one.
        images: The folder of the images, where they have the names of the column ``id``; None
            takes the column ``path``, from the folder in which the job was started.
        field: The beginning of the names of the fields.

    Returns:
        The dataset.

    Raises:
        OutputError: There are no shards, or the job's maps do not cover whole images because of
            ``--resize``.
        InputError: An image is not where it is looked for.
        ImportError: FiftyOne is not installed.
    """
    import fiftyone as fo

    folder = Path(folder)
    resize = manifest.read(folder)["configuration"]["resize"]
    if resize != _WHOLE_IMAGE:
        raise OutputError(
            f"{folder}: FiftyOne stretches a map over the whole image, and the maps of --resize "
            f"{resize} do not cover it"
        )
    samples = [_sample(fo, row, images, field) for row in _rows(folder)]
    dataset = fo.Dataset() if dataset is None else dataset
    dataset.add_samples(samples)
    return dataset


def _shards(folder: Path) -> list[Path]:
    shards = sorted(folder.glob("part-*.parquet"))
    if not shards:
        raise OutputError(f"{folder}: there are no shards in it yet")
    return shards


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for shard in _shards(folder):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(_READ_ROWS):
                yield from batch.to_pylist()


def _sample(fo: Any, row: dict[str, Any], images: str | Path | None, field: str) -> Any:
    path = Path(row["path"]) if images is None else Path(images, row["id"])
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such file; images=FOLDER names the folder of the images (those "
            "in .tar and .parquet files must be extracted first)"
        )
    sample = fo.Sample(filepath=str(path.resolve()))
    if row["status"] != OK:
        sample[f"{field}_error"] = row["error"]
        return sample
    values = unpack(row)
    highest = float(values.max(initial=0))
    sample[field] = fo.Heatmap(map=values, range=[0.0, highest or 1.0])
    if row["class_index"]:
        name, index = row["class_name"][0], row["class_index"][0]
        sample[f"{field}_prediction"] = fo.Classification(
            label=name or str(index), confidence=row["probability"][0]
        )
    sample[f"{field}_target"] = row["target_name"] or str(row["target"])
    sample[f"{field}_score"] = row["score"]
    sample[f"{field}_degenerate"] = row["degenerate"]
    return sample
