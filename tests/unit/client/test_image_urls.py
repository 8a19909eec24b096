"""Images behind links."""

from collections.abc import Iterator

import pytest

from gradcam_client import AsyncClient, Client, ImageUrl
from support.web_site import web_site
from unit.client.fake_server import FakeServer


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of a web server."""
    with web_site() as address:
        yield address


@pytest.mark.parametrize("path", ["/7", "/untyped", "/bytes", "/moved", "/moved-again"])
def test_an_image_behind_a_link_is_read(site: str, path: str) -> None:
    """With or without a type, and after redirects."""
    assert ImageUrl(site + path).read_bytes() == b"7"


async def test_both_clients_read_links(site: str, server: FakeServer) -> None:
    """Alone and in a stream, where a link that fails does not end the others."""
    good, bad = ImageUrl(f"{site}/7"), ImageUrl(f"{site}/missing")
    with Client(server.target) as client:
        assert client.explain(good).top.index == 7
        assert [one.ok for one in client.explain_stream([bad, good])] == [False, True]
    async with AsyncClient(server.target) as waiting:
        assert (await waiting.explain(good)).top.index == 7
        outcomes = [one async for one in waiting.explain_stream([bad, good])]
        assert [(str(one.source), one.ok) for one in outcomes] == [
            *((f"{site}/missing", False), (f"{site}/7", True))
        ]


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("/to-file", OSError, "Redirection to url 'file:///etc/hostname' is not allowed"),
        ("/to-ftp", ValueError, "it redirects to 'ftp://127.0.0.1/cat.jpg', which is not an http"),
        ("/to-data", OSError, "Redirection to url 'data:image/png;base64,Nw==' is not allowed"),
        ("/to-password", ValueError, "it redirects to a link with a password"),
        ("/loop", OSError, "HTTP status 302"),
        ("/missing", OSError, "/missing: HTTP status 404 Not Found"),
        ("/html", ValueError, "it is text/html; charset=utf-8, not a JPEG"),
        ("/hidden-html", ValueError, "it is HTML, not a JPEG"),
        ("/large", ValueError, "it has more than 1000 bytes"),
        ("/endless", ValueError, "it has more than 1000 bytes"),
        ("/short", OSError, "ended after 1 of 9 bytes"),
    ],
)
def test_what_is_no_image_is_refused(
    site: str, path: str, kind: type[Exception], expected: str
) -> None:
    """The error names the link, but not its query, and what was wrong."""
    with pytest.raises(kind) as caught:
        ImageUrl(f"{site}{path}?key=secret", max_bytes=1000).read_bytes()
    assert expected in str(caught.value)
    assert site + path in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/slow", "/slow-head"])
def test_the_time_limits_the_whole_image(site: str, path: str) -> None:
    """A server that sends a byte now and then does not hold the client."""
    with pytest.raises(TimeoutError, match="it took more than 0.3 s"):
        ImageUrl(site + path, timeout_s=0.3).read_bytes()


def test_a_server_that_is_not_there_is_named() -> None:
    """The error names the link and the reason."""
    with pytest.raises(OSError, match="http://127.0.0.1:1/cat.jpg: .*refused"):
        ImageUrl("http://127.0.0.1:1/cat.jpg").read_bytes()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///etc/hostname", "'file:///etc/hostname', which is not an http or https link"),
        ("ftp://example.org/cat.jpg", "which is not an http or https link"),
        ("cat.jpg", "which is not an http or https link"),
        ("http:///cat.jpg", "which has no host"),
        ("https://me:secret@example.org/cat.jpg", "a link with a password"),
    ],
)
def test_other_links_are_refused_at_once(url: str, expected: str) -> None:
    """Nothing is opened, and no password is shown."""
    with pytest.raises(ValueError, match=expected) as caught:
        ImageUrl(url)
    assert "secret" not in str(caught.value)
