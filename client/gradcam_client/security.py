"""TLS and tokens."""

import os
from collections.abc import Sequence
from pathlib import Path

import grpc

from gradcam_client.addresses import is_loopback
from gradcam_client.transport import Token, bearer


def tls_credentials(
    root: str | os.PathLike[str] | None = None,
    certificate: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> grpc.ChannelCredentials:
    """Reads PEM files into credentials for TLS.

    Args:
        root: Certificates of the authorities that may vouch for the server; None is those
            that gRPC trusts.
        certificate: This client's certificate and its chain, for mutual TLS.
        key: The private key of that certificate, not encrypted.

    Raises:
        OSError: A file cannot be read.
        ValueError: Only one of certificate and key, or a file that is no such PEM.
    """
    if (certificate is None) != (key is None):
        raise ValueError("mutual TLS needs both certificate and key; TLS alone needs neither")
    return grpc.ssl_channel_credentials(
        root_certificates=_read_pem("root", root, b"CERTIFICATE-----"),
        private_key=_read_pem("key", key, b"PRIVATE KEY-----"),
        certificate_chain=_read_pem("certificate", certificate, b"CERTIFICATE-----"),
    )


def _read_pem(name: str, path: str | os.PathLike[str] | None, label: bytes) -> bytes | None:
    if path is None:
        return None
    data = Path(path).read_bytes()
    if b"-----BEGIN " not in data or label not in data:
        raise ValueError(f"{name} must be a PEM file with a {label.decode()[:-5]}, {path} is not")
    if b"ENCRYPTED" in data:
        raise ValueError(f"{name} must not be encrypted; openssl pkey -in {path} decrypts it")
    return data


class token_from_file:  # noqa: N801 - to its users it is a function
    """A token that a file holds. The file is read again when it changes.

    Args:
        path: The file; white space around the token is left out.

    Raises:
        OSError: The file cannot be read, here or, later on, when a call is made.
        ValueError: It holds no token, here or when a call is made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._read: tuple[object, str] = (None, "")
        bearer(self())

    def __call__(self) -> str:
        """Returns the token."""
        stat = self._path.stat()
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if self._read[0] != version:
            self._read = (version, self._path.read_text().strip())
        return self._read[1]


def check_token(
    token: Token | None,
    targets: Sequence[str],
    *,
    secure: bool,
    allow_insecure: bool,
) -> Token | None:
    """Returns the token, if it may be sent there.

    Args:
        token: The token or what makes it.
        targets: Where to; none if the channel is the caller's own.
        secure: Whether the channels are encrypted.
        allow_insecure: Whether that does not matter.

    Raises:
        ValueError: Anyone on the way could read the token, or it cannot be sent at all.
    """
    if isinstance(token, str):
        bearer(token)
    if token is None or secure or allow_insecure:
        return token
    if not targets:
        raise ValueError(
            "whether a given channel is encrypted cannot be told: send a token over it "
            "with allow_insecure_token=True"
        )
    for target in targets:
        if not is_loopback(target):
            raise ValueError(
                f"a token to {target} needs TLS, for instance credentials=tls_credentials(); "
                "allow_insecure_token=True sends it in plain text"
            )
    return token
