"""Debian's chromium, driven by Playwright; tests that need it are skipped without it."""

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, sync_playwright

_CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    _CHROMIUM is None, reason="there is no chromium: apt-get install chromium"
)

_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    # A camera with a moving picture, which pages may use without asking.
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)


@contextmanager
def launched() -> Iterator[Browser]:
    """Runs a browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


def canvas_pixels(canvas: Locator) -> NDArray[np.uint8]:
    """Returns what a canvas shows: uint8 RGB (H, W, 3)."""
    return decoded(canvas.evaluate("(canvas) => canvas.toDataURL()"))


def decoded(data_url: str) -> NDArray[np.uint8]:
    """Returns the pixels of an image in a data URL: uint8 RGB (H, W, 3)."""
    with Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))
