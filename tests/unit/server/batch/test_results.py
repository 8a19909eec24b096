"""A job's rows in pandas and in FiftyOne."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gradcam_server.batch.errors import InputError, OutputError
from gradcam_server.batch.job import Job, run
from gradcam_server.batch.results import to_fiftyone, to_pandas
from gradcam_server.batch.sources.opening import open_source
from support.made_rows import MadeStage, Quiet

FAILED = 3


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The folder of a job over five images, of which one failed."""
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(b"jpeg")
    where = str(tmp_path / "in")
    job = Job(open_source(where), where, tmp_path / "out", shard_size=2)
    run(job, lambda: MadeStage(frozenset({FAILED})), Quiet())
    return tmp_path / "out"


class _Fields(dict[str, Any]):
    """Keeps its keyword arguments, as labels of FiftyOne do."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)


class _Heatmap(_Fields): ...


class _Classification(_Fields): ...


class _Dataset(list[Any]):
    add_samples = list[Any].extend


@pytest.fixture
def fiftyone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with the classes of FiftyOne that are used."""
    module: Any = ModuleType("fiftyone")
    module.Sample, module.Heatmap, module.Classification = _Fields, _Heatmap, _Classification
    module.Dataset = _Dataset
    monkeypatch.setitem(sys.modules, "fiftyone", module)
    return module


def test_integers_stay_integers_in_pandas(output: Path) -> None:
    """Where an image failed there is a null, and no column of whole numbers becomes float64."""
    table = to_pandas(output)
    assert list(table["index"]) == [0, 1, 2, 3, 4]
    assert table.dtypes["index"] == pd.Int64Dtype()
    for column in ("width", "height", "target", "heatmap_height", "heatmap_width"):
        assert table.dtypes[column] == pd.Int32Dtype()
    assert table.dtypes["degenerate"] == pd.BooleanDtype()
    assert table.dtypes["score"] == pd.Float32Dtype()
    assert list(table["target"].isna()) == [False, False, False, True, False]
    assert table["target"][0] == 7
    assert isinstance(table["width"][0], int | np.integer)
    assert "map" not in table


def test_maps_are_arrays_in_pandas(output: Path) -> None:
    """The column ``map`` holds float32 arrays, and None where an image failed."""
    maps = to_pandas(output, maps=True)["map"]
    assert maps[FAILED] is None
    assert maps[0].dtype == np.float32
    table = to_pandas(output)
    assert maps[4].shape == (table["heatmap_height"][4], table["heatmap_width"][4])


@pytest.mark.usefixtures("fiftyone")
def test_fiftyone_gets_heatmap_labels(output: Path) -> None:
    """Each sample has its file and labels, or its error; the range begins at 0."""
    dataset = to_fiftyone(output)
    assert [Path(one["filepath"]).name for one in dataset] == [f"{n}.jpg" for n in range(5)]
    assert all(Path(one["filepath"]).is_absolute() for one in dataset)
    first = dataset[0]
    assert isinstance(first["gradcam"], _Heatmap)
    (expected,) = to_pandas(output, maps=True)["map"][:1]
    np.testing.assert_array_equal(first["gradcam"]["map"], expected)
    assert first["gradcam"]["range"] == [0.0, expected.max() or 1.0]
    assert isinstance(first["gradcam_prediction"], _Classification)
    assert 0 <= first["gradcam_prediction"]["confidence"] <= 1
    assert set(dataset[FAILED]) == {"filepath", "gradcam_error"}


def test_fiftyone_fills_a_dataset_that_there_is(output: Path, fiftyone: Any) -> None:
    """Under names of its own, and from another folder of the images."""
    mine = fiftyone.Dataset()
    moved = (output.parent / "in").rename(output.parent / "moved")
    assert to_fiftyone(output, dataset=mine, images=moved, field="cam") is mine
    assert {key for one in mine for key in one} >= {"cam", "cam_error", "cam_prediction"}
    with pytest.raises(InputError, match="images=FOLDER"):
        to_fiftyone(output)


@pytest.mark.usefixtures("fiftyone")
def test_maps_that_do_not_cover_the_image_are_refused(output: Path) -> None:
    """FiftyOne would stretch them over the whole image."""
    path = output / "_manifest.json"
    path.write_text(path.read_text().replace('"stretch"', '"letterbox"'))
    with pytest.raises(OutputError, match="--resize letterbox do not cover it"):
        to_fiftyone(output)


@pytest.mark.parametrize("read", [to_pandas, to_fiftyone])
@pytest.mark.usefixtures("fiftyone")
def test_a_folder_without_shards_is_named(tmp_path: Path, read: Any) -> None:
    """The error says that it is no output of a job."""
    with pytest.raises(OutputError, match=str(tmp_path)):
        read(tmp_path)
