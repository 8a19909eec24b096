"""Clients that never take their answers: HTTP/2 by hand, whose window stays at 64 KiB."""

import socket
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS = 1, 4
_CANCEL = 8
_NO_METADATA: Mapping[str, str] = MappingProxyType({})


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns a frame of HTTP/2."""
    length = len(payload).to_bytes(3, "big")
    return length + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def greeting() -> bytes:
    """Returns the bytes that open a connection."""
    return _GREETING + frame(_SETTINGS, 0, 0, b"")


def headers(path: str, stream: int = 1, metadata: Mapping[str, str] = _NO_METADATA) -> bytes:
    """Returns the headers that begin a call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **metadata,
    }
    # Literal fields, neither indexed nor Huffman-coded.
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(_HEADERS, _END_HEADERS, stream, block)


class UnreadCalls:
    """Calls of one connection whose answers stay at the server, but for the first 64 KiB.

    Args:
        address: HOST:PORT.
        path: Of the method.
        messages: The requests, one for each call; of at most 16 KiB, so each is one frame.
        metadata: Of each call.
    """

    def __init__(
        self,
        address: str,
        path: str,
        messages: Sequence[bytes],
        metadata: Mapping[str, str] = _NO_METADATA,
    ) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._streams = [2 * number + 1 for number in range(len(messages))]
        self._socket.sendall(greeting())
        for stream, message in zip(self._streams, messages, strict=True):
            data = b"\x00" + len(message).to_bytes(4, "big") + message
            opening = headers(path, stream, metadata)
            self._socket.sendall(opening + frame(_DATA, _END_STREAM, stream, data))

    def resets(self) -> int:
        """Reads until so many calls were reset by the server as there are; returns how many.

        The connection is broken off if that takes longer than 30 s.
        """
        data, count = b"", 0
        while count < len(self._streams):
            while len(data) < 9 or len(data) < 9 + int.from_bytes(data[:3], "big"):
                chunk = self._socket.recv(1 << 16)
                if not chunk:
                    return count
                data += chunk
            length, kind = int.from_bytes(data[:3], "big"), data[3]
            count += kind == _RST_STREAM
            data = data[9 + length :]
        return count

    def cancel(self) -> None:
        """Cancels all calls."""
        for stream in self._streams:
            self._socket.sendall(frame(_RST_STREAM, 0, stream, _CANCEL.to_bytes(4, "big")))

    def leave(self, *, reset: bool = False) -> None:
        """Ends the connection: with a reset, or in order."""
        if reset:
            linger = np.array([1, 0], np.int32).tobytes()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._socket.close()
