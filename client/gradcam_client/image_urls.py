"""Reads images from http(s) links, within a size and a time."""

import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from queue import Empty, SimpleQueue
from typing import IO, Any
from urllib.parse import urlsplit

from gradcam_client.file_types import FORMATS_TEXT, describe
from gradcam_client.transport import DEFAULT_MAX_MESSAGE_BYTES, check_timeout

_SCHEMES = ("http", "https")
_CHUNK_BYTES = 2**16
_MAX_SHOWN = 200
# Servers send images as image/*, as bytes of no type, or without a type.
_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image behind a link, which ``explain`` and ``explain_stream`` read.

    Redirects are followed to http and https only. A service must not pass links of strangers on:
    a link may lead into the service's own network.

    Attributes:
        url: The link: http or https.
        timeout_s: The time for the whole image, in seconds.
        max_bytes: The largest size of the image's file.

    Raises:
        ValueError: The link has another scheme, no host or a password, or a limit is not positive.
    """

    url: str
    timeout_s: float = 30.0
    max_bytes: int = DEFAULT_MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        _check_link(self.url)
        check_timeout(self.timeout_s)
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, not {self.max_bytes}")

    def __str__(self) -> str:
        return self.url

    def read_bytes(self) -> bytes:
        """Reads the file.

        Raises:
            OSError: There is no such file (its status is named), or no connection;
                ``TimeoutError`` if it takes too long.
            ValueError: The file is too large, is no image, or a redirect leads to another scheme.
        """
        # A server may be slow with each byte, so no timeout of a socket limits the whole.
        ended: SimpleQueue[bytes | Exception] = SimpleQueue()
        deadline = time.monotonic() + self.timeout_s

        def run() -> None:
            try:
                ended.put(self._read(deadline))
            except Exception as error:  # noqa: BLE001 - raised to the caller
                ended.put(error)

        threading.Thread(target=run, name="gradcam-download", daemon=True).start()
        try:
            read = ended.get(timeout=self.timeout_s)
        except Empty:
            raise self._too_slow() from None
        if isinstance(read, Exception):
            raise self._explained(read) from read
        return read

    def _read(self, deadline: float) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked
            self.url, headers={"User-Agent": "gradcam-client", "Accept": "image/*"}
        )
        with _opener().open(request, timeout=self.timeout_s) as response:
            kind = response.headers.get("Content-Type", "")
            if kind and not kind.lower().startswith(_TYPES):
                raise ValueError(f"it is {kind}, not a {FORMATS_TEXT} image")
            announced = response.headers.get("Content-Length", "")
            if announced.isdecimal() and int(announced) > self.max_bytes:
                raise self._too_large()
            data = bytearray()
            while chunk := response.read1(_CHUNK_BYTES):
                data += chunk
                if len(data) > self.max_bytes:
                    raise self._too_large()
                if time.monotonic() > deadline:
                    raise self._too_slow()
        if announced.isdecimal() and len(data) < int(announced):
            raise OSError(f"it ended after {len(data)} of {announced} bytes")
        found = describe(bytes(data))
        if found is not None:
            raise ValueError(f"it is {found}, not a {FORMATS_TEXT} image")
        return bytes(data)

    def _too_large(self) -> ValueError:
        return ValueError(f"it has more than {self.max_bytes} bytes")

    def _too_slow(self) -> TimeoutError:
        return TimeoutError(f"{_shown(self.url)}: it took more than {self.timeout_s:g} s")

    def _explained(self, error: Exception) -> Exception:
        """Returns the error with the link, and without the words of urllib."""
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            return OSError(f"{_shown(self.url)}: HTTP status {error.code} {error.reason}")
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            return self._too_slow()
        if isinstance(error, ValueError):
            return ValueError(f"{_shown(self.url)}: {error}")
        if isinstance(error, OSError | HTTPException):
            return OSError(f"{_shown(self.url)}: {reason}")
        return error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https; urllib refuses others except ftp."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            _check_link(newurl, "it redirects to ")
        except ValueError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Returns an opener that knows http and https alone, and the proxies of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _check_link(url: str, before: str = "") -> None:
    """Refuses a link that is not a plain http(s) link."""
    parts = urlsplit(url)
    if parts.scheme.lower() not in _SCHEMES:
        raise ValueError(f"{before}{_shown(url)!r}, which is not an http or https link")
    if not parts.hostname:
        raise ValueError(f"{before}{_shown(url)!r}, which has no host")
    if parts.password is not None:
        raise ValueError(f"{before}a link with a password, which is not read")


def _shown(url: str) -> str:
    """Returns a link for an error message: without its query, which may be a secret."""
    plain = url.partition("?")[0]
    return plain if len(plain) <= _MAX_SHOWN else f"{plain[:_MAX_SHOWN]}..."
