"""GET /docs: the description of the API as one page of HTML, without scripts."""

import base64
import hashlib
import html
from collections.abc import Iterable
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradcam_server.transport.http.documents import write_json
from gradcam_server.transport.http.negotiation import JSON
from gradcam_server.transport.http.openapi import describe

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, pre { font: 0.9em/1.4 ui-monospace, monospace; }
pre { overflow-x: auto; padding: 0.7rem; border: 1px solid; border-radius: 6px; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid; }
details { margin: 0.6rem 0; } summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
td, th { text-align: left; vertical-align: top; padding: 0.25rem 0.8rem 0.25rem 0; }
tr + tr { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
"""
_EXAMPLE = """curl --data-binary @cat.jpg -H 'Accept: image/jpeg' \\
    {address}/v1/models/NAME:explain > out.jpg
curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg \\
    '{address}/v1/models/NAME:explain?top_k=3&method=layercam'"""


def routes() -> list[Route]:
    """Returns the routes of the description and of its page."""

    async def description(_: Request) -> Response:
        return Response(write_json(describe()), media_type=JSON)

    async def page(request: Request) -> Response:
        address = f"{request.scope['scheme']}://{request.headers.get('host', 'HOST')}"
        text = _page().replace("{address}", html.escape(address))
        return Response(text, headers=_headers(), media_type="text/html")

    return [
        Route("/openapi.json", description, methods=["GET"]),
        Route("/docs", page, methods=["GET"]),
    ]


@cache
def _headers() -> dict[str, str]:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy}


@cache
def _page() -> str:
    document = describe()
    info = document["info"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(info['title'])}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1>",
        f"<p>{html.escape(info['description'])}</p>",
        f"<pre>{html.escape(_EXAMPLE, quote=False)}</pre>",
        '<p><a href="/openapi.json">openapi.json</a></p><h2>Paths</h2>',
    ]
    for path, methods in document["paths"].items():
        shared = methods.get("parameters", [])
        for method in ("get", "post"):
            if method in methods:
                parts += _operation(method, path, methods[method], shared)
    parts.append("<h2>Messages</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts += _schema(name, schema)
    return "".join([*parts, "</main></body></html>"])


def _operation(
    method: str, path: str, operation: dict[str, Any], shared: list[dict[str, Any]]
) -> Iterable[str]:
    yield f"<details><summary><code>{method.upper()} {html.escape(path)}</code> "
    yield f"{html.escape(operation['summary'])}</summary>"
    yield f"<p>{html.escape(operation.get('description', ''))}</p>"
    parameters = [*shared, *operation.get("parameters", [])]
    if parameters:
        rows = (
            (one["name"], f"{one['in']}, {_type(one['schema'])}", one["description"])
            for one in parameters
        )
        yield _table(("parameter", "type", "meaning"), rows)
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        yield _table(
            ("body", "schema"), ((kind, _type(one["schema"])) for kind, one in body.items())
        )
    answers = [
        (status, ", ".join(one.get("content", {})), one["description"])
        for status, one in operation["responses"].items()
    ]
    yield _table(("status", "answer", "meaning"), answers)
    yield "</details>"


def _schema(name: str, schema: dict[str, Any]) -> Iterable[str]:
    yield f'<details id="{name}"><summary><code>{name}</code></summary>'
    yield f"<p>{html.escape(schema.get('description', ''))}</p>"
    if properties := schema.get("properties"):
        rows = (
            (field, _type(one), one.get("description", "")) for field, one in properties.items()
        )
        yield _table(("field", "type", "meaning"), rows)
    yield "</details>"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["<table><tr>", *(f'<th scope="col">{name}</th>' for name in head), "</tr>"]
    for first, *others in rows:
        lines += ["<tr><td><code>", html.escape(first), "</code></td>"]
        lines += [f"<td>{html.escape(text)}</td>" for text in others]
        lines.append("</tr>")
    return "".join([*lines, "</table>"])


def _type(schema: dict[str, Any]) -> str:
    """Returns the type of a schema in words."""
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"{_type(schema['items'])}, repeated"
    if "enum" in schema:
        return " | ".join(schema["enum"])
    return str(schema.get("contentEncoding") or schema.get("format") or schema.get("type", ""))
