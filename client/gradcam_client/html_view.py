"""HTML of results, for notebooks and pages. It loads nothing, and all texts are escaped.

A slider sets the weight of the colours over the image by a line of JavaScript; without JavaScript
it does nothing.
"""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from gradcam_client.file_types import media_type

_SLIDE = "this.closest('.gradcam').style.setProperty('--gradcam-alpha',this.value/100)"
_ROW = "display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start"
_OVER = "position:absolute;top:0;left:0;width:100%;height:100%;opacity:var(--gradcam-alpha)"
_CELL = "padding:0 .6em 0 0;border:0;text-align:left"


@dataclass(frozen=True, slots=True)
class MapView:
    """A heat map to show.

    Attributes:
        caption: The text below it.
        heat: The map in colours, of the proportions of the image, as a URI; or None.
        overlay: The image with the map over it, as a URI; or None.
    """

    caption: str
    heat: str | None
    overlay: str | None


@dataclass(frozen=True, slots=True)
class ResultView:
    """A result, or an error, to show.

    Attributes:
        title: The text above it.
        height: The image's height, in pixels.
        width: The image's width, in pixels.
        image: The image as a URI, or None.
        classes: The names and probabilities of the best classes.
        maps: The heat maps.
        error: The error, or empty.
    """

    title: str
    height: int = 0
    width: int = 0
    image: str | None = None
    classes: Sequence[tuple[str, float]] = ()
    maps: Sequence[MapView] = ()
    error: str = ""


def data_uri(data: bytes) -> str:
    """Returns an image file as a data: URI."""
    return f"data:{media_type(data)};base64,{base64.b64encode(data).decode()}"


def to_html(views: Sequence[ResultView], title: str = "") -> str:
    """Returns results below each other, with one slider for all of them."""
    has_heat = any(view.image and one.heat for view in views for one in view.maps)
    parts = [
        '<div class="gradcam" style="--gradcam-alpha:.4">',
        f"<p>{html.escape(title)}</p>" if title else "",
        '<label>Heat <input type="range" min="0" max="100" value="40" '
        f'aria-label="Weight of the colours over the image" oninput="{_SLIDE}"></label>'
        if has_heat
        else "",
        *map(_result, views),
        "</div>",
    ]
    return "\n".join(filter(None, parts))


def to_page(views: Sequence[ResultView], title: str) -> str:
    """Returns a page of its own."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        # Should any text escape the escaping, still nothing would be loaded.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title></head>"
        f'<body style="font:15px/1.4 system-ui,sans-serif">{to_html(views, title)}</body></html>\n'
    )


def _result(view: ResultView) -> str:
    size = f" ({view.width} × {view.height})" if view.width else ""  # noqa: RUF001
    if view.error:
        return f"<p><b>{html.escape(view.title)}</b>: {html.escape(view.error)}</p>"
    figures = [_figure(view, one) for one in view.maps]
    if view.image and not any(one.heat for one in view.maps):
        figures.insert(0, _frame(_image(view.image, "the image"), view.title))
    return (
        f'<div><p style="margin:.6em 0 .2em"><b>{html.escape(view.title)}</b>{size}</p>'
        f'<div style="{_ROW}">{"".join(figures)}{_table(view.classes)}</div></div>'
    )


def _figure(view: ResultView, one: MapView) -> str:
    if view.image and one.heat:
        over = _image(one.heat, "heat map of " + one.caption, _OVER)
        shown = f'<div style="position:relative">{_image(view.image, "the image")}{over}</div>'
    elif source := one.overlay or one.heat:
        shown = _image(source, one.caption)
    else:
        shown = ""
    return _frame(shown, one.caption)


def _frame(content: str, caption: str) -> str:
    return (
        f'<figure style="margin:0;width:20em;max-width:100%">{content}'
        f'<figcaption style="font-size:85%">{html.escape(caption)}</figcaption></figure>'
    )


def _image(source: str, text: str, style: str = "width:100%;display:block") -> str:
    return f'<img src="{source}" alt="{html.escape(text)}" style="{style}">'


def _table(classes: Sequence[tuple[str, float]]) -> str:
    rows = (
        f'<tr><td style="{_CELL}">{html.escape(name)}</td>'
        f'<td style="{_CELL}">{probability:.2%}</td>'
        f'<td style="{_CELL}"><meter min="0" max="1" value="{probability:.4f}"></meter></td></tr>'
        for name, probability in classes
    )
    return f"<table>{''.join(rows)}</table>" if classes else ""
