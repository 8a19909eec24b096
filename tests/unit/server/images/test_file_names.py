"""Names of image files."""

from collections import Counter

import pytest

from gradcam_server.images.file_names import describe_left_out, images_among, reason_to_leave_out


@pytest.mark.parametrize(
    ("name", "found", "listed"),
    [
        ("a/b.JPG", None, None),
        ("../b.webp", None, None),
        ("./b.png", None, None),
        ("._b.jpg", "hidden", "hidden"),
        ("a/.b.jpg", "hidden", "hidden"),
        ("__MACOSX/b.jpg", "hidden", "hidden"),
        (".cache/b.jpg", "hidden", None),
        ("b.TIFF", ".tiff", ".tiff"),
        ("b.jpg.part", ".part", ".part"),
        ("b", "without a suffix", None),
        ("notes 1.2 final", "without a suffix", None),
        ("b.2024", "without a suffix", None),
    ],
)
def test_the_rule(name: str, found: str | None, listed: str | None) -> None:
    """Found names and listed names are judged by their own rules."""
    assert reason_to_leave_out(name) == found
    assert reason_to_leave_out(name, is_listed=True) == listed


def test_what_is_left_out_is_counted_by_kind() -> None:
    """The folders above the searched folder do not count."""
    left_out: Counter[str] = Counter()
    names = [f".data/{name}" for name in ("1.jpg", ".2.jpg", "3.heic", "4.HEIC")]
    assert list(images_among(names, left_out, root=".data")) == [".data/1.jpg"]
    assert left_out == {"hidden": 1, ".heic": 2}


def test_the_most_frequent_kinds_come_first() -> None:
    """The line stays short, however many kinds of files a folder holds."""
    assert describe_left_out({".tif": 1, ".heic": 4}) == "5 files left out: .heic 4, .tif 1"
    assert describe_left_out({".tif": 1}) == "1 file left out: .tif 1"
    many = describe_left_out({f".x{number}": 1000 - number for number in range(20)})
    assert many.startswith("19,810 files left out: .x0 1,000, ")
    assert many.endswith(", .x7 993, others 11,838")
