"""Names and kinds of sources, and what is kept secret."""

from pathlib import Path

import pytest

from gradcam_server.watch.sources.errors import SourceError
from gradcam_server.watch.sources.naming import SourceKind, SourceSpec, parse_sources, shown


def _parse(text: str) -> SourceSpec:
    (spec,) = parse_sources([text])
    return spec


@pytest.mark.parametrize(
    ("text", "name", "kind", "location"),
    [
        ("0", "video0", SourceKind.CAMERA, "/dev/video0"),
        ("007", "video7", SourceKind.CAMERA, "/dev/video7"),
        ("door=2", "door", SourceKind.CAMERA, "/dev/video2"),
        ("/dev/video11", "video11", SourceKind.CAMERA, "/dev/video11"),
        (
            "gate=/dev/v4l/by-id/usb-cam-index0",
            "gate",
            SourceKind.CAMERA,
            "/dev/v4l/by-id/usb-cam-index0",
        ),
        ("rtsp://cam.local/live", "cam.local", SourceKind.STREAM, "rtsp://cam.local/live"),
        ("RTSP://cam.local/live", "cam.local", SourceKind.STREAM, "RTSP://cam.local/live"),
        ("http://[::1]:8080/?a=b", "1", SourceKind.STREAM, "http://[::1]:8080/?a=b"),
        ("a.b=http://h/x?q=1", "a.b", SourceKind.STREAM, "http://h/x?q=1"),
        ("https://h/live/index.m3u8", "h", SourceKind.STREAM, "https://h/live/index.m3u8"),
        ("https://h/clip.MP4?t=1", "h", SourceKind.FILE, "https://h/clip.MP4?t=1"),
        ("udp://@:5000", "udp", SourceKind.STREAM, "udp://@:5000"),
    ],
)
def test_kinds_and_names(text: str, name: str, kind: SourceKind, location: str) -> None:
    """A source's form tells its kind; it is named after its device or host."""
    spec = _parse(text)
    assert (spec.name, spec.kind, spec.location) == (name, kind, location)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders are told by what is there; a path that exists is not split at "="."""
    monkeypatch.chdir(tmp_path)
    for name in ("my clip.mp4", "a=b.mp4", "0x.mp4"):
        Path(name).touch()
    Path("in box").mkdir()
    assert _parse("my clip.mp4").name == "my-clip"
    assert _parse("my clip.mp4").kind is SourceKind.FILE
    assert _parse("a=b.mp4").location == "a=b.mp4"
    assert _parse("x=a=b.mp4").location == "a=b.mp4"
    assert _parse("in box/") == SourceSpec("in-box", SourceKind.FOLDER, "in box/")
    assert _parse(".").kind is SourceKind.FOLDER
    assert _parse(".").name
    assert _parse(f"file://{tmp_path}/my%20clip.mp4").location == f"{tmp_path}/my clip.mp4"


def test_names_are_unique_and_fit_for_files() -> None:
    """Two streams of one host get two names; a given name is never taken by another source."""
    specs = parse_sources(["rtsp://h/1", "rtsp://h/2", "h-2=rtsp://i/3", "0"])
    assert [spec.name for spec in specs] == ["h", "h-3", "h-2", "video0"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no source"),
        ([""], "empty source"),
        (["door="], "empty source"),
        (["a=0", "a=1"], "two sources have the name 'a'"),
        (["no-such.mp4"], "neither a file nor a folder"),
        (["x=no-such.mp4"], "'no-such.mp4' is neither"),
        (["cam.local:554/live"], "begins with its scheme, such as rtsp://cam.local:554/live"),
        (["gopher://h/x"], "gopher:// is no stream that can be watched; these are: http://"),
        (["rtsp:///x"], "without a host"),
        (["rtsp://h:notaport/x"], "not a valid URL"),
        (["rtsp://h:99999/x"], "not a valid URL"),
        (["my door=0"], "the name 'my door' before '='"),
        (["-a=0"], "the name '-a' before '='"),
        (["a\0b"], "zero byte"),
        (["/dev/null/x"], "cannot be read"),
    ],
)
def test_errors_say_what_would_be_right(texts: list[str], message: str) -> None:
    """A source that cannot be watched is refused with what is wrong."""
    with pytest.raises(SourceError) as caught:
        parse_sources(texts)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://admin:secret@10.0.0.5:554/live",
        "rtsp://10.0.0.5/user=admin_password=secret_channel=1.sdp",
        "http://10.0.0.5/video?token=secret",
        "http://secret@10.0.0.5/",
        "rtsp://admin:se@cret:secret@10.0.0.5/x",
        "https://a:secret@10.0.0.5/clip.mp4",
    ],
)
def test_credentials_are_in_no_text(url: str) -> None:
    """Neither name, repr nor what is shown of a URL holds user, password or token."""
    spec = _parse(url)
    for text in (spec.name, spec.shown, repr(spec), str(spec)):
        assert "secret" not in text
        assert "admin" not in text
    assert spec.name == "10.0.0.5"


@pytest.mark.parametrize(
    "url",
    ["rtsp://admin:secret@h:port/x", "rtsp://admin:sec/secret@h:1/x", "ftp://u:secret@h/x"],
)
def test_credentials_are_in_no_error(url: str) -> None:
    """An error about a URL does not repeat its password."""
    with pytest.raises(SourceError) as caught:
        parse_sources([url])
    assert "secret" not in str(caught.value)


def test_shown_of_a_path_is_the_path() -> None:
    """Paths hold no credentials."""
    assert shown("/data/clip.mp4") == "/data/clip.mp4"
    assert shown("http://[::1]:8080/x") == "http://[::1]:8080"
