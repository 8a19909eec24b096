"""Images in the columns of Parquet files."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradcam_server.batch.errors import InputError
from gradcam_server.batch.sources.base import Source
from gradcam_server.batch.sources.opening import open_source


def everything(source: Source) -> list[tuple[str, bytes]]:
    return [(item.id, item.load()) for item in source.read(0, len(source))]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.mark.parametrize("row_group", [1, 3, 100])
@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_parquet_rows_are_read_in_any_part(tmp_path: Path, row_group: int, form: str) -> None:
    """Bytes, or the {bytes, path} of Hugging Face, over row groups and files."""
    values = [f"image {number}".encode() for number in range(10)]
    for file, part in enumerate((values[:7], values[7:])):
        column = pa.array(part)
        if form == "struct":
            column = pa.array([{"bytes": one, "path": "a.jpg"} for one in part])
        table = pa.table({"id": [f"{file}-{row}" for row in range(len(part))], "image": column})
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=row_group)
    source = open_source(f"{tmp_path}/*.parquet")
    assert [data for _, data in everything(source)] == values
    for start in range(10):
        items = list(source.read(start, 10))
        assert [item.index for item in items] == list(range(start, 10))
        assert [item.load() for item in items] == values[start:]
    assert items[0].id == "1-2"


def test_parquet_paths_and_rows_without_an_image(tmp_path: Path) -> None:
    """Paths are relative to the file; a null is an error of that row."""
    write(tmp_path, "a.jpg")
    pq.write_table(pa.table({"path": ["a.jpg"]}), tmp_path / "p.parquet")
    assert everything(open_source(str(tmp_path / "p.parquet"))) == [("p.parquet#0", b"a.jpg")]
    table = pa.table({"photo": pa.array([None], pa.binary())})
    pq.write_table(table, tmp_path / "n.parquet")
    (item,) = open_source(str(tmp_path / "n.parquet"), column="photo").read(0, 1)
    with pytest.raises(ValueError, match="no image"):
        item.load()


def test_a_parquet_file_without_such_a_column_names_those_it_has(tmp_path: Path) -> None:
    """The error names the columns that fit."""
    pq.write_table(pa.table({"x": [1], "photo": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="--column: photo"):
        open_source(str(tmp_path / "a.parquet"))
    with pytest.raises(InputError, match="'x' has the type int64, .*fit: photo"):
        open_source(str(tmp_path / "a.parquet"), column="x")
    with pytest.raises(InputError, match="no column 'y'; .*there is photo"):
        open_source(str(tmp_path / "a.parquet"), column="y")


class ImagePath(pa.ExtensionType):
    """A custom extension type, stored as text."""

    def __init__(self) -> None:
        super().__init__(pa.string(), "test.image_path")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "ImagePath":
        return cls()


@pytest.fixture
def image_path_type() -> Iterator[ImagePath]:
    """A registered extension type, as of an imported library."""
    pa.register_extension_type(ImagePath())
    yield ImagePath()
    pa.unregister_extension_type("test.image_path")


PATHS, DATA = ["1.jpg", "2.jpg", "1.jpg"], [b"1.jpg", b"2.jpg", b"1.jpg"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(PATHS).dictionary_encode(),
        pa.array(PATHS, pa.large_string()),
        pa.array(PATHS, pa.string_view()),
        pa.array(DATA).dictionary_encode(),
        pa.array(DATA, pa.large_binary()),
        pa.array(DATA, pa.binary_view()),
        pa.array(DATA, pa.binary(5)),
        pa.array([{"bytes": one, "path": None} for one in DATA]),
        pa.array([{"bytes": None, "path": one} for one in PATHS]),
        pa.StructArray.from_arrays(
            [pa.array(DATA, pa.large_binary()), pa.array(PATHS).dictionary_encode()],
            ["bytes", "path"],
        ),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_are_read_as_their_values(tmp_path: Path, column: pa.Array) -> None:
    """The storage of a column does not matter: pandas' categories are dictionaries, for example."""
    write(tmp_path, "1.jpg", "2.jpg")
    pq.write_table(pa.table({"n": [0, 1, 2], "image": column}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [data for _, data in everything(source)] == DATA


def test_categories_of_pandas_are_paths_and_ids(tmp_path: Path) -> None:
    """Categories that ``to_parquet`` wrote are read as their values."""
    write(tmp_path, "1.jpg", "2.jpg")
    table = pd.DataFrame({"id": ["a", "b", "c"], "path": PATHS}).astype("category")
    table.to_parquet(tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert everything(source) == list(zip("abc", DATA, strict=True))


def test_extension_types_are_read_as_what_they_are_stored_as(
    tmp_path: Path, image_path_type: ImagePath
) -> None:
    """Their library need not be imported."""
    write(tmp_path, "1.jpg", "2.jpg")
    column = pa.ExtensionArray.from_storage(image_path_type, pa.array(PATHS))
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet").field("image").type == image_path_type
    source = open_source(str(tmp_path / "a.parquet"))
    assert [data for _, data in everything(source)] == DATA


@pytest.mark.parametrize("column", [None, "image"])
@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.binary()),
        pa.large_list(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.list_(pa.string(), 2),
    ],
    ids=str,
)
def test_a_column_of_lists_of_images_is_named_with_its_type(
    tmp_path: Path, column: str | None, kind: pa.DataType
) -> None:
    """Another column is not used instead, and the error says what to do."""
    table = pa.table({"image": pa.array([None], kind), "path": ["1.jpg"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="'image' has the type .*list<.*flatten.*fit: path"):
        open_source(str(tmp_path / "a.parquet"), column=column)


def test_columns_that_hold_no_images_are_named_with_their_types(tmp_path: Path) -> None:
    """Columns of lists are among them."""
    table = pa.table({"images": pa.array([[b""]]), "n": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"images \(list<element: binary>\), n \(int64\)"):
        open_source(str(tmp_path / "a.parquet"))


def test_every_file_must_have_such_a_column(tmp_path: Path) -> None:
    """A column of another type in a later file is refused before anything is explained."""
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [[b"1"]]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: the column 'image' has the type list"):
        open_source(f"{tmp_path}/*.parquet")


def test_paths_in_a_table_that_name_no_image_are_errors_of_their_rows(tmp_path: Path) -> None:
    """Each row has a result; the error names the same reason as for other sources."""
    write(tmp_path, "._1.jpg", "1.jpg", "notes.html")
    pq.write_table(pa.table({"path": ["._1.jpg", "1.jpg", "notes.html"]}), tmp_path / "a.parquet")
    first, second, third = open_source(str(tmp_path / "a.parquet")).read(0, 3)
    assert second.load() == b"1.jpg"
    for item, reason in ((first, "hidden"), (third, ".html")):
        with pytest.raises(ValueError, match=f"names no image .{reason}"):
            item.load()
