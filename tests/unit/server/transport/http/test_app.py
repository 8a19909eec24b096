"""The API over HTTP, over real sockets, with an engine that answers at once."""

import asyncio
import base64
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from gradcam_server.domain.graph_io import GraphKey, GraphOutput
from gradcam_server.domain.schedule import Answer
from gradcam_server.transport.http import page
from gradcam_server.transport.security.tokens import Token, hash_token, to_toml
from support.http_port import HttpFrontEnd, read_all, read_answer
from support.instant import InstantBackend

EXPLAIN = "/v1/models/instant:explain"
RAW = "application/x-uint8-rgb"
MAX_BYTES = 200_000


class SlowBackend(InstantBackend):
    """Answers once it may, and notes cancellations."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.cancelled = threading.Event(), threading.Event()
        self.may_answer = threading.Event()

    async def compute(self, key: GraphKey, *arguments: object) -> Answer[GraphOutput]:
        self.asked.set()
        try:
            while not self.may_answer.is_set():  # noqa: ASYNC110 - of another thread
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await super().compute(key, *arguments)  # type: ignore[arg-type]


def until(what: object, timeout_s: float = 30) -> None:
    """Waits until a condition holds."""
    assert callable(what)
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[HttpFrontEnd]:
    with HttpFrontEnd(max_message_bytes=MAX_BYTES, http_max_receive_s=1.0) as server:
        yield server


@pytest.fixture(scope="module")
def pixels() -> bytes:
    return np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8).tobytes()


def document(pixels: bytes, **fields: object) -> dict[str, object]:
    """Returns a request in proto3's JSON."""
    image = {"data": base64.b64encode(pixels).decode(), "height_px": 8, "widthPx": 8}
    return {"rawImage": image, **fields}


def test_an_image_is_explained(server: HttpFrontEnd, pixels: bytes) -> None:
    """Pixels with their size; the answer has the id of the request and the names of the proto."""
    answer = server.post(
        f"{EXPLAIN}?height=8&width=8", pixels, Content_Type=RAW, X_Request_Id="mine-1"
    )
    assert answer.status == 200, answer.body
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json["image_height_px"] == 8
    (heatmap,) = answer.json["explanations"][0]["heatmaps"]
    assert len(base64.b64decode(heatmap["data"])) == 4 * heatmap["height_px"] * heatmap["width_px"]


def test_a_connection_answers_one_request_after_the_other(
    server: HttpFrontEnd, pixels: bytes
) -> None:
    """Also after errors that came before the body was read, and with requests in advance."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for path, status in ((f"{EXPLAIN}?height=8&width=8", 200), (f"{EXPLAIN}?x=1", 400)) * 2:
        connection.request("POST", path, pixels, {"Content-Type": RAW})
        assert read_answer(connection).status == status
    connection.request("POST", EXPLAIN, pixels, {"Content-Type": "text/html"})
    assert read_answer(connection).status == 415
    connection.request("GET", "/healthz")
    assert read_answer(connection).status == 200
    connection.close()
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = get.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with server.connect(get * 3 + last) as ahead:
        assert read_all(ahead).count(b"200 OK") == 4


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"topk": 1}, "topk"),
        ({"targets": [{"class_index": 1.5}]}, "targets[0].class_index"),
        ({"targets": [{"class_index": 2**31}]}, "targets.class_index"),
        ({"targets": [{"class": 1}]}, "targets[0].class"),
        ({"targets": {}}, "targets"),
        ({"top_k": "many"}, "top_k"),
        ({"top_k": [1]}, "top_k"),
        ({"method": "METHOD_NONE"}, "method"),
        ({"method": 99}, "method"),
        ({"layers": [3]}, "layers"),
        ({"encoded_image": "AAAA"}, "image"),
        ({"rawImage": {"data": 3}}, "raw_image.data"),
        ({"rawImage": {"data": "%%%%"}}, "raw_image.data"),
        ({"rawImage": 3}, "rawImage"),
        ({"rawImage": {"data": "AAAA", "height_px": 1}}, "raw_image"),
        ({"rawImage": None, "encodedImage": "A"}, "encoded_image"),
        ({"rawImage": None, "encodedImage": "AAAA", "encoded_image": "AAAA"}, "encoded_image"),
        ({"raw_image": {"data": "AAAA"}}, "image"),
        ({"smooth_grad": {"noise_level": "NaN"}}, "smooth_grad.noise_level"),
        ({"smooth_grad": {"noise_level": 1e39}}, "smooth_grad.noise_level"),
        ({"model": "other"}, "model"),
        ({"heatmaps": [{"format": "HEATMAP_FORMAT_RAW_FLOAT32"}] * 9}, "heatmaps"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_fields_of_json_are_named(
    server: HttpFrontEnd, pixels: bytes, fields: dict[str, object], field: str
) -> None:
    """Unknown names, wrong types, numbers out of range: 400 with the field."""
    body = json.dumps(document(pixels, **fields))
    answer = server.post(EXPLAIN, body, Content_Type="application/json")
    status, code, found = answer.problem
    assert (status, code) == (400, "INVALID_ARGUMENT"), answer.body
    assert found == field, answer.body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{",
        b'{"top_k": NaN}',
        b'{"top_k": Infinity}',
        b'{"top_k": 1e400}',
        b'{"top_k": ' + b"9" * 5000 + b"}",
        b'{"top_k": 1, "top_k": 2}',
        b'{"targets": [{"class_index": 1, "class_index": 2}]}',
        b'{"targets": ' + b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"targets": ' + b'{"a":' * 500 + b"1" + b"}" * 501,
        b'{"layers": ["\\ud800"]}',
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_what_is_no_json_is_refused(server: HttpFrontEnd, body: bytes) -> None:
    """Deep nesting, huge numbers, names twice: 400, and never a fault of the server."""
    answer = server.post(EXPLAIN, body, Content_Type="application/json")
    assert answer.problem[:2] == (400, "INVALID_ARGUMENT"), answer.body


def test_base64_may_be_of_either_alphabet(server: HttpFrontEnd) -> None:
    """As proto3's JSON says, with padding or without; the answers are the same."""
    pixels = bytes(range(190, 256)) * 3 + b"\xff" * 2
    text = base64.b64encode(pixels).decode()
    assert {"+", "/", "="} <= set(text)
    found = []
    for one in (text, text.rstrip("="), text.replace("+", "-").replace("/", "_")):
        image = {"data": one, "height_px": 25, "width_px": 8}
        answer = server.post(
            EXPLAIN, json.dumps({"raw_image": image}), Content_Type="application/json"
        )
        found.append(answer.json["detail"])
    assert found == [found[0]] * 3
    assert "200" in found[0]


def test_messages_of_many_values_are_refused_quickly() -> None:
    """Protobuf takes ten microseconds for each, on the event loop."""
    with HttpFrontEnd() as server:
        body = b'{"targets": [' + b"{}," * 100_000 + b"{}]}"
        answer = server.post(EXPLAIN, body, Content_Type="application/json")
        assert answer.problem[:2] == (400, "INVALID_ARGUMENT")
        assert "2,000" in answer.json["detail"]


def test_json_of_many_values_is_refused_before_it_is_read() -> None:
    """Each value would be an object of Python, made on the event loop."""
    with HttpFrontEnd() as server:
        body = b'{"layers": [' + b"0," * 1_500_000 + b"0]}"
        answer = server.post(EXPLAIN, body, Content_Type="application/json")
        assert answer.problem[:2] == (400, "INVALID_ARGUMENT")
        assert "more than 500,000 values" in answer.json["detail"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("clas=1", "clas"),
        ("top_k=1&top_k=2", "top_k"),
        ("top_k=-1", "top_k"),
        ("top_k=1e3", "top_k"),
        ("top_k=" + "9" * 4000, "top_k"),
        ("top_k=%D9%A1", "top_k"),
        ("against=1", "against"),
        ("class=" + "x" * 2000, "class"),
        ("class=", "class"),
        ("class=1&top_k=2", "top_k"),
        ("class=99999999999", "class"),
        ("method=nothing", "method"),
        ("alpha=nan", "alpha"),
        ("quality=101", "quality"),
        ("heatmap=", "heatmap"),
        ("logits=maybe", "logits"),
        ("priority=0x1", "priority"),
        ("smooth=0", "smooth"),
        ("height=0&width=8", "height"),
        ("width=8", "height"),
        ("height=8&width=9", "image"),
        ("height=99999999&width=99999999", "image"),
        ("%00=1", "\0"),
        ("top_k=%FF", ""),
        ("&".join(["class=1"] * 300), ""),
    ],
    ids=lambda query: query[:24],
)
def test_wrong_options_are_named(
    server: HttpFrontEnd, pixels: bytes, query: str, field: str
) -> None:
    """As they are named in the query, not as in the proto file."""
    size = "" if "height" in query or "width" in query else "&height=8&width=8"
    answer = server.post(f"{EXPLAIN}?{query}{size}", pixels, Content_Type=RAW)
    assert answer.problem == (400, "INVALID_ARGUMENT", field), answer.body


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    """Writes a form."""
    body = b""
    for name, content in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", form(("image", b"x"))),
        ("multipart/form-data; boundary=", form(("image", b"x"))),
        ("multipart/form-data; boundary=" + "b" * 300, form(("image", b"x"))),
        ("multipart/form-data; boundary=c", form(("image", b"x"))),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", form(("image", b"x"))[:-8]),
        ("multipart/form-data; boundary=b", form(("picture", b"x"))),
        ("multipart/form-data; boundary=b", form(("image", b"x"), ("image", b"y"))),
        ("multipart/form-data; boundary=b", form(("image", b"x"), ("top_k", b"\xff"))),
        ("multipart/form-data; boundary=b", form(("image", b"x"), *[("class", b"1")] * 100)),
        ("multipart/form-data; boundary=b", form(("image", b"x"), ("nonsense", b"1"))),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\nX: " + b"y" * 100_000),
        ("multipart/form-data; boundary=b", b"--b\r\nX y\r\n\r\n"),
    ],
)
def test_what_is_no_form_is_refused(server: HttpFrontEnd, content_type: str, body: bytes) -> None:
    """Without a boundary or an image, cut off, too many parts or headers: 400."""
    answer = server.post(EXPLAIN, body, Content_Type=content_type)
    assert answer.problem[:2] == (400, "INVALID_ARGUMENT"), answer.body


def test_large_bodies_are_refused_before_they_are_read(server: HttpFrontEnd) -> None:
    """413 by the declared size, without a byte of the body; the client need not send it."""
    head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BYTES + 1}\r\n"
    with server.connect(f"{head}Expect: 100-continue\r\n\r\n".encode()) as connection:
        answer = connection.recv(65536)
        # What comes all the same is dropped, and the connection ends.
        connection.sendall(b"x" * 1000)
        answer += read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert b"RESOURCE_EXHAUSTED" in answer


def test_endless_chunks_are_refused(server: HttpFrontEnd) -> None:
    """A body without a declared size has the same limit."""
    head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect(head.encode()) as connection:
        chunk = b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n"
        sent = 0
        try:
            for _ in range(1000):
                connection.sendall(chunk)
                sent += 50_000
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert b"413 " in read_all(connection) or sent < 50_000_000
    assert server.get("/healthz").status == 200


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["kept", "closed"])
def test_a_client_that_sends_all_first_reads_the_413(headers: dict[str, str]) -> None:
    """Also one that asks to close the connection, as urllib does: it is not reset."""
    with HttpFrontEnd(max_message_bytes=1_000_000) as server:
        for _ in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("POST", EXPLAIN, bytes(8_000_000), headers)
            assert connection.getresponse().status == 413
            connection.close()


def test_the_answer_to_endless_chunks_is_413(server: HttpFrontEnd) -> None:
    """The client reads the answer, though it sends on for a moment."""
    head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect(head.encode() + b"%x\r\n" % 300_000 + b"x" * 300_000) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_that_trickles_is_cut_off(server: HttpFrontEnd, chunked: bool) -> None:
    """Single bytes do not extend the time; the answer is 408, and the connection ends."""
    framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000"
    head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"
    ended = threading.Event()
    with server.connect(head.encode()) as connection:

        def drip() -> None:
            while not ended.wait(0.05):
                try:
                    connection.sendall(b"1\r\nx\r\n" if chunked else b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        answer = read_all(connection)
        ended.set()
        dripping.join()
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b'"DEADLINE_EXCEEDED"' in answer


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"y" * 300_000 + b"\r\n",
        b"X: y\r\n" * 150,
        b"X: " + b"y" * 20_000 + b"\r\n",
    ],
    ids=["endless", "many", "large"],
)
def test_floods_of_headers_are_refused(server: HttpFrontEnd, head: bytes) -> None:
    """431, whether or not they end."""
    with server.connect(b"GET /healthz HTTP/1.1\r\nHost: x\r\n") as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head + b"\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\x1b[2J HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET http://other.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda sent: sent[:30].decode("latin-1"),
)
def test_what_is_no_http_harms_nobody(
    server: HttpFrontEnd, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It has an answer or the end of its connection, and no traceback and no line in the log."""
    with server.connect(sent) as connection:
        connection.shutdown(1)
        answer = read_all(connection)
    assert answer == b"" or re.match(rb"HTTP/1.1 (200|4\d\d) ", answer), answer
    assert not [one for one in caplog.records if one.levelno >= 30]
    assert server.get("/healthz").status == 200


def test_the_work_for_a_client_that_leaves_ends(pixels: bytes) -> None:
    """As gRPC cancels a call: the engine is told, and the metrics say CANCELLED."""
    backend = SlowBackend()
    with HttpFrontEnd(backend) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        headers = {"Content-Type": RAW}
        connection.request("POST", f"{EXPLAIN}?height=8&width=8", pixels, headers)
        assert backend.asked.wait(30)
        connection.close()
        assert backend.cancelled.wait(30)
        until(lambda: server.counted("gradcam_requests_total", code="CANCELLED") == 1)
        until(lambda: server.front_end.lifecycle.in_work == 0)
        assert server.front_end.ledger.total == 0


def test_a_large_request_of_a_client_that_leaves_ends_too() -> None:
    """Uvicorn stops reading at 64 KiB, and would not notice the end."""
    backend = SlowBackend()
    with HttpFrontEnd(backend) as server:
        pixels = bytes(224 * 224 * 3)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        headers = {"Content-Type": RAW}
        connection.request("POST", f"{EXPLAIN}?height=224&width=224", pixels, headers)
        assert backend.asked.wait(30)
        connection.close()
        assert backend.cancelled.wait(30)


def test_a_deadline_ends_the_work(pixels: bytes) -> None:
    """504 at the time of X-Request-Timeout."""
    backend = SlowBackend()
    with HttpFrontEnd(backend) as server:
        answer = server.post(
            f"{EXPLAIN}?height=8&width=8", pixels, Content_Type=RAW, X_Request_Timeout="0.2"
        )
        assert answer.problem == (504, "DEADLINE_EXCEEDED", "")
        assert backend.cancelled.wait(30)


def test_an_answer_that_is_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ``max_send_s`` its memory is free again."""
    with HttpFrontEnd(max_send_s=0.5) as server:
        size = 1500
        pixels = bytes(size * size * 3)
        head = (
            f"POST {EXPLAIN}?height={size}&width={size}&heatmap=image HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: {RAW}\r\nContent-Length: {len(pixels)}\r\n\r\n"
        )
        with server.connect() as connection:
            connection.sendall(head.encode() + pixels)
            until(lambda: server.front_end.ledger.total > 0)
            until(lambda: server.front_end.ledger.total == 0)
            until(lambda: server.front_end.lifecycle.in_work == 0)


def test_a_server_that_is_not_ready_says_when(pixels: bytes) -> None:
    """503 with Retry-After, before the body is read."""
    with HttpFrontEnd(ready=False) as server:
        answer = server.post(f"{EXPLAIN}?height=8&width=8", pixels, Content_Type=RAW)
        assert answer.problem == (503, "UNAVAILABLE", "")
        assert answer.headers["retry-after"] == "2"
        assert answer.json["retry_after_s"] == 2.0
        assert server.counted("gradcam_rejected_total", reason="warming_up") == 1


def test_tokens_are_required(tmp_path: Path, pixels: bytes) -> None:
    """As over gRPC: 401 without a known token, 429 over a limit; probes need none."""
    file = tmp_path / "tokens.toml"
    token = Token("alice", (hash_token("secret"),), max_requests_per_s=1)
    file.write_text(to_toml(token))
    path = f"{EXPLAIN}?height=8&width=8"
    with HttpFrontEnd(token_file=str(file)) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            answer = server.post(path, pixels, Content_Type=RAW, **headers)
            assert answer.problem == (401, "UNAUTHENTICATED", "")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert server.get("/v1/models").status == 401
        # Before the body is read, whatever it is.
        assert server.post(EXPLAIN, b"x" * 10, Content_Type="text/html").status == 401
        assert server.get("/healthz").status == 200
        assert server.get("/metrics").status == 200
        right = {"Content_Type": RAW, "Authorization": "Bearer secret"}
        assert server.post(path, pixels, **right).status == 200
        answer = server.post(path, pixels, **right)
        assert answer.problem == (429, "RESOURCE_EXHAUSTED", "")
        assert int(answer.headers["retry-after"]) >= 1
        counted = server.counted("gradcam_token_requests_total", token="alice", code="OK")
        assert counted == 1
        assert server.counted("gradcam_rejected_total", reason="unauthenticated") == 5


@pytest.mark.parametrize("allowed", [(), ("https://page.example",)], ids=["off", "on"])
def test_pages_of_other_origins_read_answers_only_if_allowed(
    allowed: tuple[str, ...], pixels: bytes
) -> None:
    """CORS is off by default."""
    path = f"{EXPLAIN}?height=8&width=8"
    asked = {
        "Origin": "https://page.example",
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization,content-type",
    }
    with HttpFrontEnd(http_cors_origin=allowed) as server:
        for origin in ("https://page.example", "https://other.example"):
            expected = origin if origin in allowed else None
            answer = server.post(path, pixels, Content_Type=RAW, Origin=origin)
            assert answer.headers.get("access-control-allow-origin") == expected
            headers = {name.replace("_", "-"): value for name, value in asked.items()}
            preflight = server.request("OPTIONS", path, None, {**headers, "Origin": origin})
            assert preflight.headers.get("access-control-allow-origin") == expected
            assert (preflight.status == 200) == (expected is not None)


def test_a_flood_of_requests_in_advance_ends_its_connection(server: HttpFrontEnd) -> None:
    """Each request of 25 bytes would hold kilobytes until its turn."""
    with server.connect() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n" * 10_000)
        answered = read_all(connection).count(b"200 OK")
    assert answered < 100
    assert server.get("/healthz").status == 200


def test_pictures_need_an_explanation(server: HttpFrontEnd, pixels: bytes) -> None:
    """``Accept: image/jpeg`` with ``top_k=0`` is wrong; without it the answer is a JPEG."""
    path = f"{EXPLAIN}?height=8&width=8"
    answer = server.post(path, pixels, Content_Type=RAW, Accept="image/jpeg")
    assert (answer.headers["content-type"], answer.body[:2]) == ("image/jpeg", b"\xff\xd8")
    answer = server.post(f"{path}&top_k=0", pixels, Content_Type=RAW, Accept="image/jpeg")
    assert answer.problem == (400, "INVALID_ARGUMENT", "top_k")


def test_the_page_is_served_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads nothing from elsewhere, and its folder cannot be left."""
    folder = tmp_path / "ui"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "index.html").write_text("<!doctype html>page")
    (folder / "app.js").write_text("export {}")
    monkeypatch.setattr(page, "FOLDER", folder)
    with HttpFrontEnd(ready=False, ui=True) as server:
        index = server.get("/")
        assert (index.status, index.body) == (200, b"<!doctype html>page")
        script = server.get("/ui/app.js")
        assert script.headers["content-type"].startswith("text/javascript")
        for answer in (index, script):
            assert "default-src 'self'" in answer.headers["content-security-policy"]
        for path in ("/ui/../secret", "/ui/%2e%2e/secret", "/ui/..%2fsecret", "/ui/"):
            assert server.get(path).status == 404, path
    with HttpFrontEnd(ready=False) as server:
        assert server.get("/").status == 404


def test_requests_in_work_are_answered_before_the_port_closes(pixels: bytes) -> None:
    """A drain refuses new requests with 503, and waits for the others."""
    backend = SlowBackend()
    answers: list[int] = []
    path = f"{EXPLAIN}?height=8&width=8"
    with HttpFrontEnd(backend) as server:
        asking = threading.Thread(
            target=lambda: answers.append(server.post(path, pixels, Content_Type=RAW).status)
        )
        asking.start()
        assert backend.asked.wait(30)
        drained = asyncio.run_coroutine_threadsafe(server.front_end.drain(), server.loop)
        until(lambda: server.front_end.lifecycle.draining.is_set())
        refused = server.post(path, pixels, Content_Type=RAW)
        assert refused.problem == (503, "UNAVAILABLE", "")
        backend.may_answer.set()
        assert drained.result(30)
        asking.join()
    assert answers == [200]


def test_connections_have_a_maximum_age(pixels: bytes) -> None:
    """So that a client connects anew, with a certificate that is valid then."""
    with HttpFrontEnd(max_connection_age_s=0.2) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/healthz")
        assert "connection" not in read_answer(connection).headers
        time.sleep(0.3)
        connection.request("GET", "/healthz")
        assert read_answer(connection).headers["connection"] == "close"
        connection.close()


def test_bodies_in_transit_count_as_held() -> None:
    """Their declared size is reserved before they arrive, and freed when their client leaves."""
    with HttpFrontEnd(max_held_bytes=1_000_000) as server:
        head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n"
        with server.connect(head.encode() + b"x" * 10):
            until(lambda: server.front_end.ledger.total == 600_000)
            answer = server.post(EXPLAIN, bytes(600_000))
            assert answer.problem == (429, "RESOURCE_EXHAUSTED", "")
            assert "retry-after" in answer.headers
        until(lambda: server.front_end.ledger.total == 0)


def test_answers_do_not_wait_for_acknowledgements(server: HttpFrontEnd) -> None:
    """Head and body are two segments: with Nagle's algorithm the second would wait 40 ms."""
    with server.connect(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        assert b"200 OK" in connection.recv(1000)
        name = connection.getsockname()
        (port,) = (
            one.transport.get_extra_info("socket")
            for one in server.connections
            if one.transport.get_extra_info("peername") == name
        )
        assert port.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
