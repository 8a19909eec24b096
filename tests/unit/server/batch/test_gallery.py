"""The page of a job's images: self-contained, and safe whatever the names of images."""

import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from gradcam_server.batch import gallery
from gradcam_server.batch.errors import OutputError
from gradcam_server.batch.gallery_script import script, source_hash
from gradcam_server.batch.job import Job, run
from gradcam_server.batch.sources.opening import open_source
from support.browser import canvas_pixels, decoded, launched, needs_chromium
from support.made_rows import MadeStage, Quiet

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>.jpg'


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def make(
    folder: Path, cat_jpeg: bytes, changes: dict[int, dict[str, object]], count: int = 6
) -> Path:
    """Runs a job over ``count`` images of a cat, with changes of some rows."""
    (folder / "in").mkdir()
    for number in range(count):
        (folder / "in" / f"{number}.jpg").write_bytes(cat_jpeg)

    class Stage(MadeStage):
        def rows(self, source, ranges):  # type: ignore[no-untyped-def]
            for row in super().rows(source, ranges):
                for name, value in changes.get(row.index, {}).items():
                    setattr(row, name, value)
                yield row

    where = str(folder / "in")
    run(Job(open_source(where), where, folder / "out"), lambda: Stage(frozenset({5})), Quiet())
    return folder / "out"


def section(page: str, title: str) -> list[str]:
    """Returns the ids of a section, in its order."""
    (part,) = re.findall(f"<h2>{title}</h2>(.*?)</section>", page, re.DOTALL)
    return re.findall(r"<b>(.*?)</b>", part)


def test_each_section_has_what_it_says(tmp_path: Path, cat_jpeg: bytes) -> None:
    """The least and most probable images, ties, zero maps and even maps come first."""
    half = np.ones(4, np.float16).tobytes()
    changes: dict[int, dict[str, object]] = {
        0: {"probability": [0.02, 0.01]},
        1: {"probability": [0.99, 0.01]},
        2: {"probability": [0.4, 0.4]},
        3: {"heatmap": bytes(8), "degenerate": True},
        4: {"heatmap": half},
    }
    page = gallery.write_gallery(make(tmp_path, cat_jpeg, changes), count=2).read_text()
    assert section(page, "Least confident") == ["0.jpg", "2.jpg"]
    assert section(page, "Most confident")[0] == "1.jpg"
    assert section(page, "Near-ties") == ["2.jpg", "0.jpg"]
    assert section(page, "Flattest maps") == ["3.jpg", "4.jpg"]
    assert section(page, "Most diffuse maps")[0] == "4.jpg"
    assert "5.jpg</td><td>bad" in page


def test_hostile_names_are_text(tmp_path: Path, cat_jpeg: bytes) -> None:
    """Ids, classes and errors are escaped; the page loads nothing and runs nothing."""
    changes: dict[int, dict[str, object]] = {
        0: {"id": HOSTILE, "class_name": [HOSTILE, HOSTILE], "target_name": HOSTILE},
        5: {"path": HOSTILE, "error": HOSTILE},
    }
    page = gallery.write_gallery(make(tmp_path, cat_jpeg, changes)).read_text()
    assert "&lt;script&gt;" in page
    tags = _Tags()
    tags.feed(page)
    assert {tag for tag, _ in tags.seen} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "section", "div"),
        *("figure", "img", "figcaption", "b", "br", "small", "table", "tr", "td", "a"),
        *("form", "label", "select", "option", "input", "canvas", "script"),
    }
    assert [tag for tag, _ in tags.seen].count("script") == 1
    assert f"<script>{script()}</script>" in page
    assert f"script-src {source_hash(script())}" in page
    for _, attributes in tags.seen:
        assert not any(name.startswith("on") for name in attributes)
        source = attributes.get("src")
        assert source is None or source.startswith("data:image/jpeg;base64,")


def test_each_image_is_shown_once_beside_its_heat_map(tmp_path: Path, cat_jpeg: bytes) -> None:
    """Other sections link to it; errors come first, then the scale of the colours."""
    page = gallery.write_gallery(make(tmp_path, cat_jpeg, {})).read_text()
    assert page.count('alt="image"') == page.count('alt="heat map over the image"') == 5
    assert page.count('<figure id="image-') == 5
    links = re.findall('href="#(.*?)"', page)
    assert len(links) > 5
    assert all(f'id="{link}"' in page for link in links)
    places = [page.index(text) for text in (">Errors", "<p class=scale", "<figure")]
    assert places == sorted(places)
    assert len(re.findall(r"; maximum [\d.e+-]+<", page)) == page.count("<figure")


@needs_chromium
def test_the_maps_are_drawn_anew_in_the_colours_that_are_chosen(
    tmp_path: Path, cat_jpeg: bytes
) -> None:
    """The viewer of the server's page draws each map as its overlay, and then as it is asked."""
    path = gallery.write_gallery(make(tmp_path, cat_jpeg, {}))
    overlay = decoded(
        re.findall('alt="heat map over the image" src="([^"]*)"', path.read_text())[0]
    )
    faults: list[str] = []
    with launched() as browser:
        page = browser.new_page()
        page.on("console", lambda said: faults.append(said.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(path.as_uri())
        canvas = page.locator("figure canvas").first
        canvas.wait_for()
        drawn = canvas_pixels(canvas)
        page.get_by_label("Colours").select_option("viridis")
        expect(page.locator("figure canvas").first).to_be_visible()
        changed = canvas_pixels(canvas)
    assert faults == []
    assert drawn.shape == overlay.shape
    assert np.abs(drawn.astype(int) - overlay.astype(int)).mean() < 4  # JPEG's losses
    assert np.abs(changed.astype(int) - overlay.astype(int)).mean() > 10


def test_images_that_have_gone_are_shown_by_their_maps(tmp_path: Path, cat_jpeg: bytes) -> None:
    """The output folder alone is enough for a page."""
    output = make(tmp_path, cat_jpeg, {})
    with_images = len(gallery.write_gallery(output).read_bytes())
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    assert len(gallery.write_gallery(output).read_bytes()) < with_images / 2


def test_a_folder_that_is_no_job_is_refused(tmp_path: Path) -> None:
    """The error says that it must be an output folder."""
    with pytest.raises(OutputError, match="not an output folder of gradcam batch"):
        gallery.write_gallery(tmp_path)
