"""Parses gRPC targets: their hosts, whether they are loopback, and which proxy gRPC uses.

gRPC takes a proxy from the environment, even for loopback addresses. Its rules:
https://github.com/grpc/grpc/blob/master/doc/environment_variables.md
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

# The first variable with a value counts. gRPC ignores names in capital letters.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")
_SCHEMES = ("dns:///", "dns:", "ipv4:", "ipv6:")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that gRPC uses.

    Attributes:
        variable: The environment variable that names the proxy.
        address: The host and port of the proxy, without user and password.
    """

    variable: str
    address: str


def is_loopback(target: str) -> bool:
    """Returns whether a target is certainly on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    return all(_is_loopback_host(host) for host in hosts(target))


def hosts(target: str) -> Iterator[str]:
    """Yields the hosts of a target, without ports and brackets."""
    for scheme in _SCHEMES:
        target = target.removeprefix(scheme)
    for address in target.split(","):
        host, colon, _ = address.rpartition(":")
        yield (host if colon else address).strip("[]")


def has_port(target: str) -> bool:
    """Returns whether a target names a port; gRPC's default is 443."""
    return target.startswith(("unix", "vsock")) or re.search(r":\d+$", target) is not None


def proxy_of(target: str) -> Proxy | None:
    """Returns the proxy that gRPC uses for a target, by the environment, or None."""
    if target.startswith("vsock:") or is_loopback(target):
        return None
    variable = _first_set(_PROXY_VARIABLES)
    url = urlsplit(os.environ.get(variable, ""))
    if url.scheme != "http" or not url.netloc:  # gRPC ignores others
        return None
    exceptions = os.environ.get(_first_set(_EXCEPTION_VARIABLES), "").split(",")
    if any(_is_exempt(host, item.strip()) for host in hosts(target) for item in exceptions):
        return None
    return Proxy(variable, url.netloc.rpartition("@")[2])


def _first_set(variables: tuple[str, ...]) -> str:
    return next((name for name in variables if os.environ.get(name)), variables[-1])


def _is_exempt(host: str, exception: str) -> bool:
    if not exception:
        return False
    if host.lower().endswith(exception.lower()):
        return True
    try:
        return ip_address(host) in ip_network(exception, strict=False)
    except ValueError:
        return False


def _is_loopback_host(host: str) -> bool:
    if host.lower().removesuffix(".") == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified  # 0.0.0.0 is this machine, too
