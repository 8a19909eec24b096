"""TLS credentials and bearer tokens."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

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
        root: Certificates of the authorities to trust for the server; None takes those that come
            with gRPC.
        certificate: This client's certificate and its chain, for mutual TLS.
        key: The private key of that certificate, not encrypted.

    Raises:
        OSError: A file cannot be read.
        ValueError: Certificate or key is missing, or a file is not the PEM file expected.
    """
    if (certificate is None) != (key is None):
        raise ValueError("mutual TLS needs both certificate and key; TLS alone needs neither")
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read_pem("root", root, b"CERTIFICATE-----"),
        private_key=_read_pem("key", key, b"PRIVATE KEY-----"),
        certificate_chain=_read_pem("certificate", certificate, b"CERTIFICATE-----"),
    )
    _FILES[credentials] = TlsFiles(root, certificate, key)
    return credentials


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of credentials, which unlike the credentials can be pickled.

    Attributes:
        root: As of ``tls_credentials``.
        certificate: As of ``tls_credentials``.
        key: As of ``tls_credentials``.
    """

    root: str | os.PathLike[str] | None
    certificate: str | os.PathLike[str] | None
    key: str | os.PathLike[str] | None

    @staticmethod
    def of(credentials: object) -> "TlsFiles | None":
        """Returns the files of credentials, or None if ``tls_credentials`` did not make them."""
        return _FILES.get(credentials) if isinstance(credentials, grpc.ChannelCredentials) else None

    def read(self) -> grpc.ChannelCredentials:
        """Reads the files, as ``tls_credentials`` does."""
        return tls_credentials(self.root, self.certificate, self.key)


_FILES: WeakKeyDictionary[grpc.ChannelCredentials, TlsFiles] = WeakKeyDictionary()


def _read_pem(name: str, path: str | os.PathLike[str] | None, label: bytes) -> bytes | None:
    if path is None:
        return None
    data = Path(path).read_bytes()
    if b"-----BEGIN " not in data or label not in data:
        raise ValueError(f"{name} must be a PEM file with a {label.decode()[:-5]}, {path} is not")
    if b"ENCRYPTED" in data:
        raise ValueError(f"{name} must not be encrypted; openssl pkey -in {path} decrypts it")
    return data


class token_from_file:  # noqa: N801 - users call it like a function
    """Reads a token from a file, and again whenever the file changes.

    Args:
        path: The file; white space around the token is ignored.

    Raises:
        OSError: The file cannot be read, now or at a later call.
        ValueError: The file holds no token, now or at a later call.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._read: tuple[object, str] = (None, "")
        bearer(self())

    def __reduce__(self) -> tuple[type["token_from_file"], tuple[Path]]:
        return token_from_file, (self._path,)  # not the token

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
    """Returns the token if it may be sent to the targets.

    Args:
        token: The token, or the function that returns it.
        targets: The gRPC targets; empty if the caller passed a channel.
        secure: Whether the channels are encrypted.
        allow_insecure: Whether the token may be sent without encryption.

    Raises:
        ValueError: The token would be sent in plain text, or is not a valid header value.
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
