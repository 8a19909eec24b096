"""A web server whose answers are right and wrong in many ways."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

PNG = b"\x89PNG\r\n\x1a\n"
CHUNK = bytes(2**16)


class Handler(BaseHTTPRequestHandler):
    """Answers by the path of the request."""

    def do_GET(self) -> None:
        with suppress(OSError):  # the client left
            self.answers[self.path.partition("?")[0]](self)

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def endless(self) -> None:
        self.send(PNG, Content_Type="image/png")
        while True:
            self.wfile.write(CHUNK)

    def slow(self) -> None:
        self.send(PNG, Content_Type="image/png")
        while True:
            time.sleep(0.05)
            self.wfile.write(b".")

    def slow_head(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        while True:
            time.sleep(0.05)
            self.wfile.write(b"a: b\r\n")

    answers: ClassVar[dict[str, Callable[["Handler"], None]]] = {
        "/7": lambda self: self.send(b"7", Content_Type="image/png"),
        "/untyped": lambda self: self.send(b"7"),
        "/bytes": lambda self: self.send(b"7", Content_Type="application/octet-stream"),
        "/moved": lambda self: self.send(b"", 302, Location="/7"),
        "/moved-again": lambda self: self.send(b"", 308, Location="/moved"),
        "/loop": lambda self: self.send(b"", 302, Location="/loop"),
        "/to-file": lambda self: self.send(b"", 302, Location="file:///etc/hostname"),
        "/to-ftp": lambda self: self.send(b"", 301, Location="ftp://127.0.0.1/cat.jpg"),
        "/to-data": lambda self: self.send(b"", 307, Location="data:image/png;base64,Nw=="),
        "/to-password": lambda self: self.send(b"", 303, Location="http://me:secret@127.0.0.1/"),
        "/missing": lambda self: self.send(b"", 404),
        "/html": lambda self: self.send(
            b"<!doctype html>", Content_Type="text/html; charset=utf-8"
        ),
        "/hidden-html": lambda self: self.send(b"<!doctype html>"),
        "/large": lambda self: self.send(b"7", Content_Length="1001"),
        "/short": lambda self: self.send(b"7", Content_Length="9"),
        "/endless": endless,
        "/slow": slow,
        "/slow-head": slow_head,
    }


@contextmanager
def web_site() -> Iterator[str]:
    """Yields the address of the web server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        web.daemon_threads = True
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()
