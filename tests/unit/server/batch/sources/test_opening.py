"""Sources are complete, have a fixed order, and can be read in any part."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcam_server.batch.errors import InputError
from gradcam_server.batch.sources.base import Source, Strings
from gradcam_server.batch.sources.files import FileSource
from gradcam_server.batch.sources.opening import open_source


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
    """Strings in one buffer are the given strings, also after pickling."""
    kept = Strings(strings)
    assert list(kept) == strings
    assert kept[1:3] == strings[1:3]
    assert pickle.loads(pickle.dumps(kept)).fingerprint == kept.fingerprint


def test_a_folder_is_read_with_all_below_it_by_name(tmp_path: Path) -> None:
    """Images that are not hidden, in the order of their names, whatever the disk's order."""
    write(tmp_path, "b.JPG", "a/2.png", "a/10.webp", "a.bmp", "c.txt", ".x.jpg", ".git/y.jpg")
    source = open_source(str(tmp_path))
    assert [item.id for item in source.read(0, len(source))] == [
        *("a.bmp", "b.JPG", "a/10.webp", "a/2.png")
    ]
    assert everything(source)[-1] == ("a/2.png", b"a/2.png")
    assert next(source.read(3, 4)).index == 3


def test_what_the_job_writes_is_no_input(tmp_path: Path) -> None:
    """Overlays in an output folder below the input do not change the list."""
    write(tmp_path, "a.jpg", "out/_overlays/0.jpg")
    assert len(open_source(str(tmp_path), outside=tmp_path / "out")) == 1


def test_patterns_lists_and_single_images(tmp_path: Path) -> None:
    """Relative paths of a list are relative to its own folder."""
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
    """Such a file is read; its id has escapes."""
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
    """Only images among the members count; ids name shard and member."""
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


def test_a_list_that_changes_has_another_fingerprint(tmp_path: Path) -> None:
    """More images, other images, or another order change the fingerprint."""
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
    """The error says what is wrong, and what is right."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_source(str(tmp_path / name))


def test_a_folder_of_shards_is_told_as_a_pattern(tmp_path: Path) -> None:
    """The error for a folder of shards names the pattern to use."""
    write_tar(tmp_path / "a.tar", "1.jpg")
    with pytest.raises(InputError, match=r"give a pattern: '.*/\*\.tar'"):
        open_source(str(tmp_path))


MADE_BY_MACOS = ["__MACOSX/._1.jpg", "__MACOSX/2.jpg", "a/._1.jpg", "._1.jpg"]


TREE = [
    *MADE_BY_MACOS,
    "a/1.JPG",
    "a/.thumbs/1.png",
    "2.png",
    "3.tif",
    "a/4.TIF",
    "5.heic",
    "notes",
]


def test_every_source_leaves_out_the_same_names(tmp_path: Path) -> None:
    """Folder, tar file, pattern and list leave out macOS' files, hidden files, other formats."""
    write(tmp_path / "tree", *TREE)
    write_tar(tmp_path / "tree.tar", *(f"./{name}" for name in TREE))
    # A list may name files without a suffix.
    listed = [f"tree/{name}" for name in TREE if name != "notes"]
    (tmp_path / "tree.txt").write_text("\n".join(listed))
    for where in ("tree", "tree.tar", "tree/**", "tree/**/*.*", "tree.txt"):
        source = open_source(str(tmp_path / where))
        found = {item.path.rpartition("/")[2] for item in source.read(0, len(source))}
        # A list may name files in hidden folders.
        expected = {"1.JPG", "2.png"} | ({"1.png"} if where == "tree.txt" else set())
        assert found == expected, where
        assert source.left_out[".tif"] == 2, where
        assert source.left_out[".heic"] == 1, where


def test_hidden_files_that_a_pattern_asks_for_are_left_out_too(tmp_path: Path) -> None:
    """A pattern that begins in a hidden folder reads that folder."""
    write(tmp_path / ".cache", "1.jpg", "._1.jpg", "__MACOSX/2.jpg")
    source = open_source(f"{tmp_path}/.cache/*.jpg")
    assert [item.id for item in source.read(0, len(source))] == [f"{tmp_path}/.cache/1.jpg"]
    source = open_source(f"{tmp_path}/.cache/**/*.jpg")
    assert (len(source), dict(source.left_out)) == (1, {"hidden": 1})
    with pytest.raises(InputError, match="none ends in"):
        open_source(f"{tmp_path}/.cache/.*.jpg")


def test_a_source_without_images_says_what_is_there(tmp_path: Path) -> None:
    """The error counts the files that were left out, by format."""
    write(tmp_path / "x", "1.heic", "2.heic", "3.tif")
    write_tar(tmp_path / "x.tar", "1.avif")
    with pytest.raises(InputError, match=r"3 files left out: \.heic 2, \.tif 1"):
        open_source(str(tmp_path / "x"))
    with pytest.raises(InputError, match=r"1 file left out: \.avif 1"):
        open_source(str(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf1.jpg\n2.jpg\n",
        b"\xef\xbb\xbf1.jpg\r\n2.jpg\r\n",
        b"1.jpg\n\n   \n2.jpg",
        b"1.jpg \t\n\xef\xbb\xbf2.jpg\n",
        b"\xef\xbb\xbf\n1.jpg\n2.jpg\n",
    ],
    ids=["mark", "mark and CRLF", "blank lines", "two lists in one", "mark alone"],
)
def test_a_list_is_its_paths_whoever_wrote_it(tmp_path: Path, text: bytes) -> None:
    """Byte order marks, Windows' line ends and blank lines are not part of paths."""
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.txt").write_bytes(text)
    source = open_source(str(tmp_path / "list.txt"))
    assert everything(source) == [("1.jpg", b"1.jpg"), ("2.jpg", b"2.jpg")]


def test_a_list_has_no_comments(tmp_path: Path) -> None:
    """A name may begin with a number sign, and hold bytes that are not UTF-8."""
    (tmp_path / "list.txt").write_bytes(b"#1.jpg\n\xe9.jpg\n")
    first, second = open_source(str(tmp_path / "list.txt")).read(0, 2)
    assert (first.id, second.id) == ("#1.jpg", "\\xe9.jpg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg\r\n".encode("utf-16"), "not a list in UTF-8"),
        ("1.jpg".encode("utf-16-be"), "not a list in UTF-8"),
        ("\N{CJK UNIFIED IDEOGRAPH-4E00}".encode("utf-16"), "not a list in UTF-8"),
        (b"1.jpg\x002.jpg\x00", "find -print0"),
        (b"1.jpg\nhttps://example.org/2.jpg\n", r"line 2: .*is a link"),
        (b"s3://bucket/2.jpg\n", r"line 1: .*is a link"),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "UTF-16 without zeros", "NUL", "link", "bucket"],
)
def test_what_is_no_list_of_paths_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    """The error says what a list is; no file is lost silently."""
    (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(InputError, match=message):
        open_source(str(tmp_path / "list.txt"))
