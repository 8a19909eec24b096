"""The server's certificates, which may be replaced while it runs."""

import logging
import ssl
import threading
from pathlib import Path

import grpc

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import StartupError
from gradcam_server.transport.security.files import Version, version

logger = logging.getLogger(__name__)


class CertificateFiles:
    """PEM files, read again when they change.

    Thread-safe: gRPC calls ``newer`` for each new connection.

    Args:
        certificate: The server's certificate and its chain.
        key: Its private key, not encrypted.
        client_ca: The authorities of client certificates; None requires no client certificates.

    Raises:
        StartupError: The files cannot be read, or do not belong together.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._paths = [path for path in (certificate, key, client_ca) if path is not None]
        self._changing = threading.Lock()
        self._seen: Version = version(self._paths)
        self._initial = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Makes credentials that follow changes of the files."""
        return grpc.dynamic_ssl_server_credentials(
            self._initial,
            self.newer,  # type: ignore[arg-type] # None is allowed: no change
            require_client_authentication=self._client_ca is not None,
        )

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the certificates if they have changed since the last call, else None.

        Files that hold no certificate, or do not belong together (only one of two is replaced),
        change nothing: the log has the reason, and they are read again at their next change.
        """
        with self._changing:
            now = version(self._paths)
            if now == self._seen:
                return None
            try:
                fresh = self._read()
            except StartupError as error:
                logger.error("The old certificates stay: %s", error)  # noqa: TRY400
                self._seen = now
                return None
            if version(self._paths) != now:  # changed while they were read: at the next connection
                return None
            self._seen = now
        logger.info("Read the certificates again from %s", self._certificate)
        return fresh

    def context(self) -> ssl.SSLContext:
        """Makes a context of Python's with the certificates as they are now.

        Raises:
            StartupError: The files cannot be used.
        """
        context = self._check()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._check()
        try:
            key, certificate = self._key.read_bytes(), self._certificate.read_bytes()
            authorities = self._client_ca.read_bytes() if self._client_ca is not None else None
        except OSError as error:
            raise StartupError(f"cannot read a certificate: {error}") from error
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)

    def _check(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ValueError) as error:
            raise StartupError(
                f"--tls-certificate {self._certificate} and --tls-key {self._key} must be a PEM "
                f"certificate and its private key, not encrypted: {error}"
            ) from error
        if self._client_ca is None:
            return context
        try:
            context.load_verify_locations(self._client_ca)
        except (OSError, ValueError) as error:
            raise StartupError(
                f"--tls-client-ca {self._client_ca} must hold PEM certificates: {error}"
            ) from error
        return context


def server_credentials(config: ServeConfig) -> grpc.ServerCredentials | None:
    """Makes the credentials of the gRPC port; None for plain text.

    Raises:
        StartupError: The files cannot be used, or the settings name only one of them.
    """
    files = _certificate_files(config)
    return None if files is None else files.credentials()


def tls_context(config: ServeConfig) -> ssl.SSLContext | None:
    """Makes the context of the HTTP port, which follows changes of the files; None for plain text.

    With authorities for clients, a certificate is verified if the client has one: probes have
    none. Whoever answers must check that there is one.

    Raises:
        StartupError: The files cannot be used, or the settings name only one of them.
    """
    files = _certificate_files(config)
    if files is None:
        return None
    context = files.context()

    def use_newest(connection: ssl.SSLObject, *_: object) -> None:
        nonlocal context
        if files.newer() is not None:
            context = files.context()
        connection.context = context

    listening = files.context()
    # Called at the beginning of each handshake.
    listening.sni_callback = use_newest
    return listening


def _certificate_files(config: ServeConfig) -> CertificateFiles | None:
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise StartupError("TLS needs both --tls-certificate and --tls-key")
    if config.tls_certificate is None or config.tls_key is None:
        if config.tls_client_ca is not None:
            raise StartupError("--tls-client-ca needs --tls-certificate and --tls-key as well")
        return None
    client_ca = Path(config.tls_client_ca) if config.tls_client_ca is not None else None
    return CertificateFiles(Path(config.tls_certificate), Path(config.tls_key), client_ca)


def _no_password() -> str:
    raise ValueError("the key is encrypted; openssl pkey -in KEY -out NEW_KEY decrypts it")
