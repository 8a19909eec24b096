"""HTML of results."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import Client, Explained, Failed, ImageExplanation, Outcome, Viewer, drawing
from unit.client.fake_server import FakeServer
from unit.client.test_drawing import IMAGE, answer, signed_map


class Tags(HTMLParser):
    """Collects the names and attributes of tags, which are all closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in {"img", "input", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.found)


def test_a_notebook_shows_the_image_the_map_and_the_classes() -> None:
    """The map lies over the image; names of classes are escaped; nothing is loaded."""
    page = answer(signed_map())._repr_html_()
    tags = Tags(page)
    assert (tags.count("img"), tags.count("input"), tags.count("meter")) == (2, 1, 1)
    assert tags.count("script") == tags.count("b") - 1 == 0
    assert "&quot;&lt;b&gt;cat" in page
    assert "50.00%" in page
    assert "&lt;script&gt;cat&lt;/script&gt;: logit" in page
    sources = [attributes["src"] or "" for tag, attributes in tags.found if tag == "img"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", page)


def test_a_large_photograph_is_made_small(tmp_path: Path) -> None:
    """A notebook holds a small picture, whatever the size of the file."""
    large = np.random.default_rng(1).integers(0, 256, (1200, 1800, 3), np.uint8)
    path = tmp_path / "large.png"
    path.write_bytes(drawing.png(large))
    for image in (path, large):
        assert 1000 < len(answer(signed_map(), image=image)._repr_html_()) < 1_000_000


def test_the_servers_overlay_is_shown_where_nothing_can_be_drawn() -> None:
    """Without the image and the raw map there is still the overlay."""
    overlay = pb.Heatmap(format=pb.HEATMAP_FORMAT_OVERLAY_PNG, data=drawing.png(IMAGE))
    message = pb.ExplainImageResponse(explanations=[pb.Explanation(heatmaps=[overlay])])
    page = ImageExplanation.from_response(message)._repr_html_()
    assert Tags(page).count("img") == 1
    assert "<input" not in page


@pytest.mark.parametrize("image", [None, b"no image", Path("gone.jpg"), IMAGE])
def test_a_result_is_always_shown(image: object) -> None:
    """What is missing is left out; showing a result raises no error."""
    empty = ImageExplanation.from_response(pb.ExplainImageResponse(model="m"), image)  # type: ignore[arg-type]
    assert "<b>" in empty._repr_html_()
    assert "heat" not in Tags(empty._repr_html_()).open


def test_a_viewer_shows_results_and_errors(tmp_path: Path) -> None:
    """As many as it may take, in their order, in a notebook and as a page."""
    result = answer(signed_map())
    outcomes: list[Outcome] = [
        Failed("<gone>.jpg", FileNotFoundError("<no such file>")),
        Explained(IMAGE, result),
        *[Explained(IMAGE, result)] * 3,
    ]
    viewer = Viewer(outcomes, max_count=3)
    page = viewer._repr_html_()
    assert Tags(page).count("figure") == 2
    assert "3 images, 1 failed" in page
    assert "<b>&lt;gone&gt;.jpg</b>: &lt;no such file&gt;" in page
    viewer.save(tmp_path / "page.html")
    saved = (tmp_path / "page.html").read_text("utf-8")
    assert page in saved
    assert Tags(saved.replace("<!doctype html>", "")).count("figure") == 2
    assert "default-src 'none'" in saved
    assert Tags(Viewer([result])._repr_html_()).count("figure") == 1


def test_results_know_their_image(server: FakeServer) -> None:
    """Of a call and of a stream: a drawing needs no second argument."""
    with Client(server.target) as client:
        assert client.explain(b"7").image == b"7"
        assert [one.unwrap().image for one in client.explain_stream([b"1", b"2"])] == [b"1", b"2"]
    shown = repr(answer(signed_map()))
    assert "image=" not in shown
    assert pytest.approx(answer(signed_map()).explanations[0].on_image(60, 90).max(), abs=0.4) == 1
