"""The files of the page: their weight, what they load, and tables that equal the server's."""

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import gradcam_server
from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client.requests import (
    COLORMAPS,
    MANY_PASS_METHODS,
    METHODS,
    RESIZE_MODES,
    SCORE_TYPES,
)

UI = Path(gradcam_server.__file__).parent / "transport" / "http" / "ui"
MAX_BYTES = 150_000


def text_of(name: str) -> str:
    return (UI / name).read_text("utf-8")


def options_of(select: str) -> list[str]:
    """Returns the values of a list to choose from."""
    (part,) = re.findall(rf'<select id="{select}">(.*?)</select>', text_of("index.html"), re.DOTALL)
    return re.findall(r'<option value="([^"]*)"', part)


def test_the_page_is_light() -> None:
    """All files together, with the example photograph, are smaller than 150 kB."""
    sizes = {path.name: path.stat().st_size for path in UI.iterdir()}
    assert {"index.html", "app.js", "style.css", "cat.jpg"} <= sizes.keys()
    assert sum(sizes.values()) < MAX_BYTES, sizes


@pytest.mark.parametrize(
    "path", [*UI.glob("*.js"), *UI.glob("*.css"), *UI.glob("*.html")], ids=lambda path: path.name
)
def test_nothing_is_loaded_from_elsewhere(path: Path) -> None:
    """No file names an address, and the page's document has neither scripts nor styles in it."""
    text = path.read_text("utf-8")
    assert not re.search(r"https?:|[\"'(]//\w", text)
    if path.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", text)


@pytest.mark.parametrize("name", COLORMAPS)
def test_the_colour_maps_are_the_servers(name: str) -> None:
    """All 256 colours of each map equal those of the overlays, and there is no other map."""
    tables = dict(re.findall(r"(\w+): decode\(([^)]*)\)", text_of("colormaps.js")))
    assert list(tables) == list(COLORMAPS) == options_of("colormap")
    colors = base64.b64decode("".join(re.findall(r'"([^"]*)"', tables[name])))
    levels = np.arange(256, dtype=np.uint8).reshape(1, -1)
    expected = cv2.applyColorMap(levels, getattr(cv2, f"COLORMAP_{name.upper()}"))[0, :, ::-1]
    assert np.array_equal(np.frombuffer(colors, np.uint8).reshape(256, 3), expected)


def test_the_methods_are_the_servers() -> None:
    """The page knows every method by its name in requests, and which take many passes."""
    pairs = re.findall(r'(METHOD_\w+): \{\s*name: "([^"]+)"([^}]*)', text_of("api.js"))
    assert {(name, method) for method, name, _ in pairs} == {
        (name, pb.Method.Name(number)) for name, number in METHODS.items()
    }
    many = {name for _, name, rest in pairs if "passes" in rest}
    assert many == set(MANY_PASS_METHODS)


def test_the_other_options_are_the_servers() -> None:
    """The page offers each score and each way to fit a photograph, and no other."""
    assert options_of("score") == list(SCORE_TYPES)
    assert options_of("resize") == list(RESIZE_MODES)
