"""The page at / of the HTTP port, in a browser."""

import base64
import io
import itertools
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, Route, expect

from gradcam_client import Client, OverlayPng
from gradcam_server.domain.layers import Extent
from gradcam_server.domain.requests import ResizeMode
from gradcam_server.images.geometry import fit
from gradcam_server.transport.security.tokens import Token, hash_token, to_toml
from support.browser import canvas_pixels, launched, needs_chromium
from support.server import RunningServer, quick, serving

pytestmark = needs_chromium

EGYPTIAN_CAT, TIGER_CAT, TABBY = 285, 282, 281
SHOWN_MS = 20_000
MAX_PAGE_BYTES = 150_000
OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def page_server() -> Iterator[RunningServer]:
    """A warm server with the page."""
    with serving(*quick(), "--http-port", "0", "--ui") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium."""
    with launched() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, page_server: RunningServer) -> Iterator[OpenPage]:
    """Opens the page; nothing may go to another server, and nothing may fail silently."""
    faults: list[str] = []
    contexts = []

    def on_console(said: ConsoleMessage) -> None:
        # Chromium reports each answer with an error status, too; the page shows those itself.
        if said.type == "error" and "Failed to load resource" not in said.text:
            faults.append(said.text)

    def on_request(request: Request) -> None:
        if not request.url.startswith((f"{page_server.http_address}/", "blob:", "data:")):
            faults.append(request.url)

    def opened(**options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SHOWN_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", on_console)
        page.on("request", on_request)
        page.goto(f"{page_server.http_address}/")
        expect(page.locator("#model option")).not_to_have_count(0)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """The page on a desktop."""
    return open_page(viewport={"width": 1280, "height": 900})


@pytest.fixture
def cat_page(page: Page, images: Path) -> Page:
    """The page with the cat, explained."""
    choose(page, images / "cat.jpg")
    return page


def choose(page: Page, *paths: Path) -> None:
    """Chooses photographs, and waits until the first is explained."""
    strip = page.locator(".strip li")
    count = strip.count()
    page.set_input_files("#files", list(paths))
    expect(strip).to_have_count(count + len(paths))
    wait_explained(page)


def wait_explained(page: Page) -> None:
    expect(page.locator(".panel[aria-busy=true]")).to_have_count(0)
    expect(page.locator(".heading strong").first).to_contain_text("Why")


def hand_over(page: Page, event: str, path: Path) -> None:
    """Drops or pastes a file, as browsers tell a page of it."""
    page.evaluate(
        """([event, base64, name]) => {
          const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], name, { type: "image/jpeg" }));
          const options = { bubbles: true, cancelable: true };
          document.body.dispatchEvent(
            event === "paste"
              ? new ClipboardEvent("paste", { ...options, clipboardData: data })
              : new DragEvent(event, { ...options, dataTransfer: data }),
          );
        }""",
        [event, base64.b64encode(path.read_bytes()).decode(), path.name],
    )


def pixels(page: Page, panel: int = 0) -> NDArray[np.uint8]:
    """Returns what a picture of the page shows: uint8 RGB (H, W, 3)."""
    return canvas_pixels(page.locator(".panel canvas").nth(panel))


def class_row(page: Page, name: str) -> Any:
    exact = page.get_by_text(name, exact=True)
    return page.locator(".classes li").filter(has=exact)


def requests_of(page: Page) -> list[str]:
    """Returns a list that grows with each request from now on."""
    seen: list[str] = []
    page.on("request", lambda request: seen.append(f"{request.method} {request.url}"))
    return seen


def is_close(actual: NDArray[np.uint8], expected: NDArray[np.uint8]) -> bool:
    """Whether two pictures differ by the rounding of two decoders and two blendings at most."""
    difference = np.abs(actual.astype(int) - expected.astype(int))
    return actual.shape == expected.shape and difference.max() <= 4 and difference.mean() < 0.6


def server_overlay(client: Client, image: Path, colormap: Any = "jet", **options: Any) -> Any:
    form = OverlayPng(colormap=colormap)
    result = client.explain(image, heatmaps=[form], **options)
    with Image.open(io.BytesIO(result.explanations[0].overlay)) as overlay:
        return np.asarray(overlay.convert("RGB"))


@pytest.fixture(scope="module")
def page_client(page_server: RunningServer) -> Iterator[Client]:
    """What the server itself answers."""
    with Client(page_server.address) as client:
        yield client


@pytest.fixture
def cat_png(images: Path, tmp_path: Path) -> Path:
    """The cat without losses, so that browser and server see the same pixels."""
    path = tmp_path / "cat.png"
    with Image.open(images / "cat.jpg") as image:
        image.save(path)
    return path


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photograph_that_is_handed_over_is_explained(
    page: Page, images: Path, event: str
) -> None:
    """Dropping or pasting a photograph shows its class, the probability and the heat."""
    hand_over(page, event, images / "cat.jpg")
    wait_explained(page)
    first = page.locator(".classes .class").first
    expect(first).to_contain_text("Egyptian cat")
    text = first.locator(".percent").inner_text()
    assert 50 < float(text.removesuffix(" %")) <= 100
    with Image.open(images / "cat.jpg") as image:
        assert not is_close(pixels(page), np.asarray(image))
    expect(page.get_by_role("status").first).to_contain_text("Why Egyptian cat?")


@pytest.mark.parametrize("resize", ["stretch", "center-crop", "letterbox"])
def test_the_picture_is_the_servers_overlay(
    page: Page, page_client: Client, cat_png: Path, resize: str
) -> None:
    """From the raw map alone the page draws what the server draws, for each way to fit."""
    choose(page, cat_png)
    page.select_option("#resize", resize)
    wait_explained(page)
    for colormap in ("jet", "turbo", "viridis", "inferno"):
        page.select_option("#colormap", colormap)
        expected = server_overlay(page_client, cat_png, colormap, resize=resize)
        assert is_close(pixels(page), expected), colormap


def test_appearance_changes_at_once_without_the_server(cat_page: Page) -> None:
    """Colours, opacity, threshold and outline change the pixels and cause no request."""
    seen = requests_of(cat_page)
    pictures = [pixels(cat_page)]
    cat_page.select_option("#colormap", "viridis")
    pictures.append(pixels(cat_page))
    cat_page.fill("#opacity", "0.8")
    pictures.append(pixels(cat_page))
    cat_page.fill("#threshold", "0.5")
    pictures.append(pixels(cat_page))
    cat_page.check("#outline")
    pictures.append(pixels(cat_page))
    for before, after in itertools.pairwise(pictures):
        assert not np.array_equal(before, after)
    assert seen == []


def test_any_class_is_explained_by_a_click(
    cat_page: Page, page_client: Client, images: Path
) -> None:
    """The best classes are there at once; another class is found by its name or a synonym."""
    seen = requests_of(cat_page)
    class_row(cat_page, "tabby").locator(".class").click()
    expect(cat_page.locator(".heading strong")).to_have_text("Why tabby?")
    expected = server_overlay(page_client, images / "cat.jpg", classes=[TABBY])
    assert is_close(pixels(cat_page), expected)
    assert seen == []
    cat_page.fill("#other-class", "Felis concolor")  # a cougar
    cat_page.get_by_role("button", name="Explain", exact=True).click()
    expect(cat_page.locator(".heading strong")).to_have_text("Why cougar?")
    assert len(seen) == 1
    cat_page.fill("#other-class", "no such thing")
    cat_page.get_by_role("button", name="Explain", exact=True).click()
    expect(cat_page.locator("#other-hint")).to_contain_text("no class “no such thing”")


def test_why_this_rather_than_that(cat_page: Page, page_client: Client, images: Path) -> None:
    """A second class gives the map of the contrast; choosing it again ends the contrast."""
    versus = class_row(cat_page, "tiger cat").locator(".versus")
    versus.click()
    expect(cat_page.locator(".heading strong")).to_have_text(
        "Why Egyptian cat rather than tiger cat?"
    )
    pair = (EGYPTIAN_CAT, TIGER_CAT)
    expected = server_overlay(page_client, images / "cat.jpg", classes=[pair])
    assert is_close(pixels(cat_page), expected)
    versus.click()
    expect(cat_page.locator(".heading strong")).to_have_text("Why Egyptian cat?")


def test_methods_are_compared_side_by_side(cat_page: Page) -> None:
    """A second picture has a method of its own; the pointer shows the value of each."""
    cat_page.click("#beside")
    cat_page.select_option("#method", "layercam")
    expect(cat_page.locator(".heading").nth(1)).to_contain_text("LayerCAM")
    expect(cat_page.locator(".heading").nth(0)).to_contain_text("Grad-CAM,")
    assert not np.array_equal(pixels(cat_page, 0), pixels(cat_page, 1))
    cat_page.locator(".panel canvas").nth(0).hover()
    for readout in cat_page.locator(".readout").all():
        assert re.fullmatch(r"[\d.]+ % of the maximum; value [\d.e-]+", readout.inner_text())
    cat_page.locator(".panel .close").nth(0).click()
    expect(cat_page.locator(".panel")).to_have_count(1)


def test_the_keyboard_is_enough(page: Page, images: Path) -> None:
    """A photograph is chosen, a class explained and a value read without a pointer."""

    def go_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate("(one) => document.activeElement.matches(one)", selector):
                return
            page.keyboard.press("Tab")
        pytest.fail(f"Tab does not lead to {selector}")

    page.on("filechooser", lambda _: None)  # asks the browser for the event before the key
    go_to("#choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(images / "cat.jpg")
    wait_explained(page)
    go_to(".panel canvas")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout")).to_contain_text("of the maximum")
    expect(page.locator("#announce")).to_contain_text("of the maximum")
    go_to(".classes li:nth-child(2) .class")
    page.keyboard.press("Space")
    expect(page.locator(".heading strong")).to_have_text("Why tiger cat?")
    go_to(".classes li:nth-child(3) .versus")
    page.keyboard.press("Enter")
    expect(page.locator(".heading strong")).to_have_text("Why tiger cat rather than tabby?")
    before = pixels(page)
    go_to("#opacity")
    page.keyboard.press("End")
    assert not np.array_equal(pixels(page), before)


@pytest.mark.parametrize("width", [320, 360])
def test_narrow_screens_fit(open_page: OpenPage, images: Path, width: int) -> None:
    """Nothing is wider than a phone, and everything to touch is at least 44 pixels high."""
    page = open_page(viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for target in page.locator("button, select, input:not([type=checkbox])").all():
            box = target.bounding_box()
            if box is not None and target.is_visible():
                assert box["height"] >= 44, target.evaluate("(one) => one.outerHTML")
                assert box["width"] >= 44, target.evaluate("(one) => one.outerHTML")
        choose(page, images / "cat.jpg", images / "espresso.jpg")
    readout = page.locator(".readout")
    for _ in range(20):  # a tap before the picture is drawn shows nothing
        page.locator(".panel canvas").tap()
        page.wait_for_timeout(250)
        if readout.inner_text():
            break
    expect(readout).to_contain_text("of the maximum")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(open_page: OpenPage, images: Path, scheme: Any) -> None:
    """Neither the empty page nor the page with pictures has an accessibility fault."""
    page = open_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    for step in ("empty", "shown", "dialog"):
        if step == "shown":
            choose(page, images / "cat.jpg", images / "espresso.jpg")
            page.click("#beside")
            wait_explained(page)
        if step == "dialog":
            page.evaluate("document.getElementById('token-dialog').showModal()")
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], step


def test_the_page_is_light_and_closed(
    browser: Browser, page_server: RunningServer, images: Path
) -> None:
    """Loading and using it takes less than 150 kB from this server, and the policy is strict."""
    context = browser.new_context()
    page = context.new_page()
    responses: list[Response] = []

    def on_response(response: Response) -> None:
        responses.append(response)

    page.on("response", on_response)
    answer = page.goto(f"{page_server.http_address}/")
    assert answer is not None
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    expect(page.locator("#model option")).not_to_have_count(0)
    sizes = {one.url: len(one.body()) for one in responses}
    files = {url: size for url, size in sizes.items() if "/v1/" not in url}
    assert len(files) > 5
    assert all(url.startswith(f"{page_server.http_address}/") for url in sizes)
    assert sum(files.values()) < MAX_PAGE_BYTES
    context.close()


def test_several_photographs_form_a_strip(page: Page, images: Path) -> None:
    """Each has its class under it; one is shown at a time, and each can be removed."""
    choose(page, images / "cat.jpg", images / "espresso.jpg")
    strip = page.locator(".strip li")
    expect(strip.nth(1)).to_contain_text("espresso")
    class_row(page, "tabby").locator(".class").click()
    expect(page.locator(".heading strong")).to_have_text("Why tabby?")
    strip.nth(1).get_by_role("button").first.click()
    expect(page.locator(".heading strong")).to_have_text("Why espresso?")
    strip.nth(1).get_by_role("button", name="Remove").click()
    expect(page.locator(".heading strong")).to_have_text("Why Egyptian cat?")
    strip.nth(0).get_by_role("button", name="Remove").click()
    expect(page.locator("#drop")).to_be_visible()


def test_the_camera_takes_a_photograph(page: Page) -> None:
    """A picture of the camera is explained as a file is."""
    page.click("#camera")
    page.click("#shoot")
    wait_explained(page)
    expect(page.locator("#camera-dialog")).to_be_hidden()
    expect(page.locator(".classes .class")).to_have_count(10)


def test_the_picture_is_saved_as_it_is_shown(cat_page: Page, tmp_path: Path) -> None:
    """The saved file has the pixels of the page."""
    cat_page.select_option("#colormap", "inferno")
    cat_page.check("#outline")
    with cat_page.expect_download() as download:
        cat_page.click("#save")
    download.value.save_as(tmp_path / "saved.png")
    assert download.value.suggested_filename == "cat-explained.png"
    with Image.open(tmp_path / "saved.png") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels(cat_page))


@pytest.mark.parametrize("language", ["curl", "python"])
def test_the_copied_lines_give_the_same_picture(
    open_page: OpenPage, cat_png: Path, language: str
) -> None:
    """What is copied runs as it is, and writes the picture of the page."""
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    photo = cat_png.with_name("the cat's photograph.png")
    cat_png.rename(photo)
    choose(page, photo)
    class_row(page, "tiger cat").locator(".versus").click()
    page.select_option("#method", "layercam")
    page.select_option("#colormap", "viridis")
    page.fill("#opacity", "0.7")
    expect(page.locator(".heading")).to_contain_text("LayerCAM")
    wait_explained(page)
    page.click(f"#copy-{language}")
    expect(page.locator(f"#copy-{language}")).to_have_text("Copied")
    text = page.evaluate("navigator.clipboard.readText()")
    command = ["bash", "-c", text] if language == "curl" else [sys.executable, "-c", text]
    subprocess.run(command, cwd=photo.parent, check=True, capture_output=True)
    with Image.open(photo.with_name("the cat's photograph-explained.png")) as image:
        assert is_close(pixels(page), np.asarray(image.convert("RGB")))


def test_errors_are_said_in_plain_words(page: Page, images: Path, tmp_path: Path) -> None:
    """A file that is no photograph, and an error of the server with its remedy, are shown."""
    fake = tmp_path / "fake.jpg"
    fake.write_text("no photograph")
    page.set_input_files("#files", fake)
    expect(page.get_by_role("alert")).to_contain_text("fake.jpg is no photograph")
    choose(page, images / "cat.jpg")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.evaluate(
        """() => {
          const layer = document.getElementById("layer");
          layer.append(new Option("gone", "gone"));
          layer.value = "gone";
          layer.dispatchEvent(new Event("change"));
        }"""
    )
    expect(page.get_by_role("alert")).to_contain_text("gone")
    expect(page.locator("#retry")).to_be_visible()


def test_a_newer_request_ends_the_older(cat_page: Page) -> None:
    """A class that is chosen while the server works on another is the one that is shown."""
    held: list[Route] = []
    failed: list[str] = []

    def hold(route: Route) -> None:
        if "layercam" in route.request.url:
            held.append(route)
        else:
            route.continue_()

    cat_page.route("**/*:explain*", hold)
    cat_page.on("requestfailed", lambda request: failed.append(request.url))
    cat_page.select_option("#method", "layercam")
    expect(cat_page.locator(".wait")).to_contain_text("LayerCAM")
    cat_page.select_option("#method", "hirescam")
    expect(cat_page.locator(".heading")).to_contain_text("HiResCAM")
    assert len(held) == 1
    assert [url for url in failed if "layercam" in url]
    expect(cat_page.locator(".wait")).to_be_hidden()


def test_the_browser_places_maps_as_the_server(page: Page) -> None:
    """Enlarged maps equal the server's for all ways to fit, odd sizes and partial extents."""
    random = np.random.default_rng(7)
    for mode in ResizeMode:
        for _ in range(6):
            height, width = (int(size) for size in random.integers(5, 90, 2))
            input_size = (int(random.integers(8, 60)), int(random.integers(8, 60)))
            values = random.random(tuple(random.integers(1, 9, 2)), np.float32)
            top, left, tall, wide = (float(one) for one in random.uniform(3, 30, 4))
            extent = Extent(top - 10, left - 10, tall, wide) if random.random() < 0.5 else None
            _, placement = fit(np.zeros((height, width, 3), np.uint8), input_size, mode)
            expected = placement.map_to_image(values, extent)
            actual = page.evaluate(
                """async ([values, extent, image, input, mode]) => {
                  const { enlarge, place } = await import("/ui/geometry.js");
                  const sizes = { height: values.length, width: values[0].length };
                  const map = { ...sizes, values: values.flat(), extent };
                  return [...enlarge(map, place(image, input, mode), image)];
                }""",
                [
                    values.tolist(),
                    None
                    if extent is None
                    else {
                        "top": extent.top,
                        "left": extent.left,
                        "height": extent.height,
                        "width": extent.width,
                    },
                    {"height": height, "width": width},
                    {"height": input_size[0], "width": input_size[1]},
                    mode.value,
                ],
            )
            assert np.allclose(np.reshape(actual, expected.shape), expected, atol=1e-5), mode


def test_a_token_is_asked_for(browser: Browser, images: Path, tmp_path: Path) -> None:
    """A page needs no token, but its calls do: a wrong token is asked for again."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(to_toml(Token("alice", (hash_token("alices"),))))
    options = ("--http-port", "0", "--ui", "--token-file", str(tokens))
    with serving(*quick(), *options) as guarded:
        page = browser.new_page()
        page.goto(f"{guarded.http_address}/")
        for secret in ("wrong", "alices"):
            page.get_by_label("Token", exact=True).fill(secret)
            page.get_by_role("button", name="Continue").click()
            if secret == "wrong":
                expect(page.locator("#token-words")).to_contain_text("the token is unknown")
        expect(page.locator("#model option")).not_to_have_count(0)
        choose(page, images / "cat.jpg")
        expect(page.locator(".classes .class").first).to_contain_text("Egyptian cat")
        page.close()


def test_without_the_option_there_is_no_page(server: RunningServer) -> None:
    """The page is off unless asked for."""
    for path in ("/", "/ui/app.js"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{server.http_address}{path}", timeout=10)
