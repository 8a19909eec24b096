"""The example of docs/client.md for FastAPI."""

import re
from pathlib import Path
from typing import Any

import pytest

from unit.client.fake_server import FakeServer

PAGE = Path(__file__).resolve().parents[3] / "docs" / "client.md"


def test_the_example_for_fastapi_answers(server: FakeServer) -> None:
    """A client at the top of a module serves requests, over one start of the application each."""
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    testing = pytest.importorskip("fastapi.testclient")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    (example,) = (block for block in blocks if "FastAPI" in block)
    module: dict[str, Any] = {"__name__": "example"}
    exec(example.replace("localhost:50051", server.target), module)
    with testing.TestClient(module["app"]) as http:
        assert http.post("/classes", content=b"7").json() == {"thing": 1.0}
        assert http.post("/classes", content=b"8").json() == {"thing": 1.0}
    assert [request.prediction_count for request in server.requests] == [3, 3]
    assert module["client"]._pool.closed
