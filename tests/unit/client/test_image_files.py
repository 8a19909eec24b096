"""Paths of images, texts mistaken for paths, and the types of files."""

import base64
import errno
from pathlib import Path

import pytest

from gradcam_client import Client, ImageInput, build_request
from gradcam_client.image_files import shown

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40).decode()
MAX_MESSAGE = 200  # of which 80 characters at most are the caller's


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PNG, "base64 text of 13664 characters, not a path; give base64.b64decode"),
        (PNG[:60], "base64 text of 60 characters"),
        ("/9j/4AAQSkZJRgABAQAAAQABAAD", "base64 text of 27 characters"),
        ("A" * 5000, "base64 text of 5000 characters"),
        (f"data:image/png;base64,{PNG}", "is a data: URL, not a path"),
        (
            "https://example.org/cat.jpg",
            r"is a link, not a path; give ImageUrl\(link\), or down",
        ),
        (Path("https://example.org/cat.jpg"), "'https:/example.org/cat.jpg' is a link"),
        ("s3://bucket/" + "x" * 500 + ".jpg", "is a link, not a path; download it"),
        ("GIF89a\0\0", "it has a null character"),
    ],
)
def test_what_is_no_path_is_named(image: str | Path, message: str) -> None:
    """The error names the kind of text and the remedy, and quotes little of the text."""
    with pytest.raises(ValueError, match=message) as raised:
        build_request(image)
    assert len(str(raised.value)) < MAX_MESSAGE
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_a_stream_goes_on_after_what_is_no_path(tmp_path: Path) -> None:
    """Such an image of a stream has this error as its outcome."""
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html>")
    given: list[ImageInput] = [PNG, "https://example.org/cat.jpg", tmp_path / "page.jpg"]
    with Client("127.0.0.1:1") as client:
        errors = [str(outcome.error) for outcome in client.explain_stream(given)]
    for said, expected in zip(errors, ("base64", "link", "HTML"), strict=True):
        assert expected in said
        assert len(said) < MAX_MESSAGE


def test_a_name_that_is_too_long_is_cut() -> None:
    """Text that is no path raises Python's error, but is not quoted whole."""
    text = "a prompt, not a path. " * 500
    with pytest.raises(OSError, match="too long") as raised:
        build_request(text)
    assert raised.value.errno == errno.ENAMETOOLONG
    assert len(str(raised.value)) < MAX_MESSAGE
    assert len(shown(text)) < 80


def test_a_missing_file_is_named_whole(tmp_path: Path) -> None:
    """A valid path is neither cut, however deep, nor taken for another kind of text."""
    for missing in (tmp_path / ("d" * 200) / "cat.jpg", tmp_path / ("0af3" * 16), Path("C:/x.jpg")):
        with pytest.raises(FileNotFoundError) as raised:
            build_request(missing)
        assert str(missing) in str(raised.value)


def test_a_file_may_be_called_like_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing file is read, even if its name resembles a link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "https:").mkdir()
    (tmp_path / "https:" / "cat.jpg").write_bytes(b"7")
    assert build_request("https://cat.jpg").encoded_image == b"7"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"GIF89a\1\0\1\0", "GIF"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"%PDF-1.4", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n <HTML><head>", "HTML"),
        (PNG.encode(), "base64 text"),
    ],
)
def test_a_file_of_another_format_is_not_sent(tmp_path: Path, data: bytes, kind: str) -> None:
    """The error names the type of the file, whatever its suffix, and the remedy."""
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"the file is {kind}.*not a JPEG, PNG, WebP or BMP image"):
        build_request(path)


def test_what_is_not_known_is_sent(tmp_path: Path) -> None:
    """Unknown types, and bytes of any type, are left to the server."""
    path = tmp_path / "cat.jpg"
    for data in (b"", b"no image", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 "):
        path.write_bytes(data)
        assert build_request(path).encoded_image == data
    assert build_request(b"GIF89a").encoded_image == b"GIF89a"
