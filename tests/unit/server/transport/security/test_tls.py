"""Certificates that change while the server runs."""

import logging
from pathlib import Path

import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import StartupError
from gradcam_server.transport.security.tls import CertificateFiles, server_credentials
from support.certificates import Authority, replace


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("ours")


def test_certificates_are_read_again_when_they_change(authority: Authority, tmp_path: Path) -> None:
    """They are read once for each change, and not if they are the same."""
    files = CertificateFiles(*authority.issue("one").write(tmp_path, "server"))
    assert files.newer() is None
    authority.issue("two").write(tmp_path, "server")
    assert files.newer() is not None
    assert files.newer() is None


def test_half_a_change_keeps_the_old_certificate(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new certificate is used only once its key is there."""
    certificate, key = authority.issue("one").write(tmp_path, "server")
    files, new = CertificateFiles(certificate, key), authority.issue("two")
    replace(certificate, new.certificate)
    with caplog.at_level(logging.ERROR):
        assert files.newer() is None
        assert files.newer() is None
    assert caplog.text.count("The old certificates stay") == 1
    replace(key, new.key)
    assert files.newer() is not None


@pytest.mark.parametrize("broken", [b"", b"nonsense", None])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_broken_files_keep_the_old_certificate(
    authority: Authority, tmp_path: Path, which: int, broken: bytes | None
) -> None:
    """Any of the three files, empty, garbled or missing; a repaired file is used again."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    paths = (*authority.issue("one").write(tmp_path, "server"), ca)
    files = CertificateFiles(*paths)
    good = paths[which].read_bytes()
    if broken is None:
        paths[which].unlink()
    else:
        replace(paths[which], broken)
    assert files.newer() is None
    replace(paths[which], good)
    assert files.newer() is not None


def test_files_that_do_not_belong_together_stop_the_start(
    authority: Authority, tmp_path: Path
) -> None:
    """Also missing and encrypted files; the error has the flags, and no password is asked for."""
    certificate, key = authority.issue("one").write(tmp_path, "one")
    _, other = authority.issue("two").write(tmp_path, "two")
    _, encrypted = authority.issue("three", password=b"secret").write(tmp_path, "three")
    for wrong in (other, tmp_path / "none.key", certificate, encrypted):
        with pytest.raises(StartupError, match="--tls-certificate .* and --tls-key .* must be"):
            CertificateFiles(certificate, wrong)
    with pytest.raises(StartupError, match="the key is encrypted; openssl pkey"):
        CertificateFiles(certificate, encrypted)
    with pytest.raises(StartupError, match="--tls-client-ca .* must hold PEM certificates"):
        CertificateFiles(certificate, key, key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_certificate": "a"}, "both --tls-certificate and --tls-key"),
        ({"tls_key": "a"}, "both --tls-certificate and --tls-key"),
        ({"tls_client_ca": "a"}, "--tls-client-ca needs --tls-certificate and --tls-key"),
    ],
)
def test_half_a_configuration_is_refused(options: dict[str, str], message: str) -> None:
    """A server that should have TLS never serves plain text."""
    with pytest.raises(StartupError, match=message):
        server_credentials(ServeConfig(**options))  # type: ignore[arg-type]
    assert server_credentials(ServeConfig()) is None
