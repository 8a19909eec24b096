"""Lists of images: complete, in the same order each time, and readable in any part."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcam_server.batch.errors import InputError
from gradcam_server.batch.inputs import FileSource, Source, Strings, open_source


def everything(source: Source) -> list[tuple[str, bytes]]:
    return [(item.id, item.load()) for item in source.read(0, len(source))]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def write_tar(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as shard:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            shard.addfile(member, io.BytesIO(name.encode()))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_strings_are_what_was_given(strings: list[str]) -> None:
    """One buffer holds them all."""
    kept = Strings(strings)
    assert list(kept) == strings
    assert kept[1:3] == strings[1:3]
    assert pickle.loads(pickle.dumps(kept)).fingerprint == kept.fingerprint


def test_a_folder_is_read_with_all_below_it_by_name(tmp_path: Path) -> None:
    """Only images, hidden ones not, in the order of their names, whatever the disk's order."""
    write(tmp_path, "b.JPG", "a/2.png", "a/10.webp", "a.bmp", "c.txt", ".x.jpg", ".git/y.jpg")
    source = open_source(str(tmp_path))
    assert [item.id for item in source.read(0, len(source))] == [
        *("a.bmp", "b.JPG", "a/10.webp", "a/2.png")
    ]
    assert everything(source)[-1] == ("a/2.png", b"a/2.png")
    assert next(source.read(3, 4)).index == 3


def test_what_the_job_writes_is_no_input(tmp_path: Path) -> None:
    """Overlays in an output folder below the input would change the list."""
    write(tmp_path, "a.jpg", "out/_overlays/0.jpg")
    assert len(open_source(str(tmp_path), outside=tmp_path / "out")) == 1


def test_patterns_lists_and_single_images(tmp_path: Path) -> None:
    """A list's relative paths begin at its own folder."""
    write(tmp_path, "p/b.jpg", "p/a.jpg", "c.png")
    (tmp_path / "list.txt").write_text(f"p/b.jpg\n\n{tmp_path}/c.png\r\nno such.jpg\n")
    assert [Path(name).name for name, _ in everything(open_source(f"{tmp_path}/p/*.jpg"))] == [
        *("a.jpg", "b.jpg")
    ]
    assert len(open_source(str(tmp_path / "c.png"))) == 1
    listed = open_source(str(tmp_path / "list.txt"))
    first, second, third = listed.read(0, 3)
    assert (first.load(), second.load()) == (b"p/b.jpg", b"c.png")
    with pytest.raises(FileNotFoundError):
        third.load()


def test_names_that_are_no_utf8_are_read_and_shown(tmp_path: Path) -> None:
    """Such a file is an image like others; its row says its name in escapes."""
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"data")
    assert everything(open_source(str(tmp_path))) == [("\\xff.jpg", b"data")]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe, a folder or a broken link with an image's name is an error of that input."""
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("nowhere")
    pipe, link = open_source(str(tmp_path)).read(0, 2)
    with pytest.raises(ValueError, match="regular"):
        pipe.load()
    with pytest.raises(FileNotFoundError):
        link.load()


def test_tar_shards_are_read_by_member(tmp_path: Path) -> None:
    """WebDataset's: of the members of each key the image counts; ids name shard and member."""
    write_tar(tmp_path / "s-0.tar", "x/1.jpg", "x/1.json", "x/2.png")
    write_tar(tmp_path / "s-1.tar", "3.jpeg")
    write_tar(tmp_path / "s-2.tar")
    source = open_source(f"{tmp_path}/s-*.tar")
    assert everything(source) == [
        ("s-0.tar/x/1.jpg", b"x/1.jpg"),
        ("s-0.tar/x/2.png", b"x/2.png"),
        ("s-1.tar/3.jpeg", b"3.jpeg"),
    ]
    assert [item.index for item in pickle.loads(pickle.dumps(source)).read(1, 3)] == [1, 2]
    assert len(open_source(str(tmp_path / "s-0.tar"))) == 2


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


def test_a_list_that_changes_has_another_fingerprint(tmp_path: Path) -> None:
    """More images, others, or the same in another order."""
    lists = [["a", "b"], ["b", "a"], ["a"], ["ab"], ["a", "b", "c"]]
    prints = [FileSource("list", one).fingerprint for one in lists]
    assert len(set(prints)) == len(prints)
    assert FileSource("list", ["a", "b"]).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", None, "no such folder"),
        ("a.zip", b"", "must be a folder"),
        ("a.tar", b"no tar at all" * 100, "tar file"),
        ("a.parquet", b"no parquet", "Parquet"),
        ("a.txt", b"\n\n", "no images"),
        ("*.jpg", None, "nothing matches"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    """What was wrong, and what would be right."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_source(str(tmp_path / name))


def test_a_folder_of_shards_is_told_as_a_pattern(tmp_path: Path) -> None:
    """A folder means images; what is in it says what was meant."""
    write_tar(tmp_path / "a.tar", "1.jpg")
    with pytest.raises(InputError, match=r"give a pattern: '.*/\*\.tar'"):
        open_source(str(tmp_path))


def test_a_parquet_file_without_such_a_column_names_those_it_has(tmp_path: Path) -> None:
    """--column chooses."""
    pq.write_table(pa.table({"x": [1], "photo": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="--column: photo"):
        open_source(str(tmp_path / "a.parquet"))
    with pytest.raises(InputError, match="no column 'x'"):
        open_source(str(tmp_path / "a.parquet"), column="x")
