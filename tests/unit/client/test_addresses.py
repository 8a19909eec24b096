"""Hosts and proxies of targets."""

import pytest

from gradcam_client.addresses import Proxy, has_port, is_loopback, proxy_of
from unit.client.conftest import PROXY_VARIABLES

PROXY = "http://user:secret@proxy.example.org:3128"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:1", True),
        ("LOCALHOST.:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("0.0.0.0:1", True),
        ("unix:/tmp/socket", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("localhost.example.org:1", False),
        ("10.0.0.1:1", False),
        ("dns://10.0.0.1/localhost:1", False),
        ("127.0.0.1.example.org:1", False),
    ],
)
def test_loopback_is_told_for_certain(target: str, expected: bool) -> None:
    """An address that only resembles loopback belongs to another machine."""
    assert is_loopback(target) is expected


@pytest.mark.parametrize(
    ("target", "variables", "variable"),
    [
        ("example.org:1", {"http_proxy": PROXY}, "http_proxy"),
        ("example.org:1", {"http_proxy": PROXY, "https_proxy": PROXY}, "https_proxy"),
        ("example.org:1", {"https_proxy": PROXY, "grpc_proxy": PROXY}, "grpc_proxy"),
        ("example.org:1", {"http_proxy": PROXY, "grpc_proxy": ""}, "http_proxy"),
        ("example.org:1", {}, None),
        ("example.org:1", {"HTTP_PROXY": PROXY}, None),
        ("example.org:1", {"http_proxy": "socks5://proxy:1"}, None),
        ("localhost:1", {"http_proxy": PROXY}, None),
        ("unix:/tmp/x", {"http_proxy": PROXY}, None),
        ("a.example.org:1", {"http_proxy": PROXY, "no_proxy": "x, example.org"}, None),
        ("10.1.2.3:1", {"http_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, None),
        ("a.org:1", {"http_proxy": PROXY, "no_proxy": "a.org", "no_grpc_proxy": "b"}, "http_proxy"),
    ],
)
def test_the_proxy_is_the_one_that_grpc_takes(
    monkeypatch: pytest.MonkeyPatch, target: str, variables: dict[str, str], variable: str | None
) -> None:
    """In the order of gRPC's variables and with their exceptions; the password is not repeated."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    expected = variable and Proxy(variable, "proxy.example.org:3128")
    assert proxy_of(target) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [("a:1", True), ("[::1]:1", True), ("unix:/x", True), ("a", False), ("dns:///a", False)],
)
def test_a_missing_port_is_seen(target: str, expected: bool) -> None:
    """Without a port gRPC takes 443."""
    assert has_port(target) is expected
