"""Commands that connect to a server with TLS, mutual TLS and tokens."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradcam_server.transport.security.tokens import Token, hash_token, to_toml
from support.certificates import Authority
from support.server import GRADCAM, RunningServer, quick

ROOT = Path(__file__).resolve().parents[2]
WARM_S = 180


class Secured:
    """A warm server with a certificate for 127.0.0.1 and localhost, and its clients' files."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        authority = Authority("ours")
        (folder / "ca.pem").write_bytes(authority.certificate)
        (folder / "other.pem").write_bytes(Authority("other").certificate)
        certificate, key = authority.issue("server").write(folder, "server")
        files = ("--tls-certificate", str(certificate), "--tls-key", str(key))
        self.running = RunningServer(*quick(), *files, *options)

    def gradcam(
        self, *arguments: str | Path, status: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command beside the files; it must end with this status, without a traceback."""
        ended = subprocess.run(
            [GRADCAM, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == status, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    def refused(self, *arguments: str | Path, **variables: str) -> str:
        """Returns the one line of a command's error."""
        ended = self.gradcam(*arguments, status=1, **variables)
        assert ended.stdout == ""
        (line,) = ended.stderr.splitlines()
        return line


def serving(server: Secured) -> Iterator[Secured]:
    try:
        server.running.wait_for("Serving efficientnet-lite0", WARM_S)
        yield server
        assert "Traceback" not in server.running.text, server.running.text
        assert server.running.stop() == 0
    finally:
        server.running.kill()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server with TLS and tokens, whose address is not in its certificate, and an admin port."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens = []
    for name in ("alice", "root"):
        (folder / f"{name}.token").write_text(f"{name}s\n")
        tokens.append(to_toml(Token(name, (hash_token(f"{name}s"),), admin=name == "root")))
    (folder / "guess.token").write_text("guess\n")
    (folder / "tokens.toml").write_text("\n".join(tokens))
    options = ("--token-file", str(folder / "tokens.toml"), "--admin-port", "0")
    yield from serving(Secured(folder, "--host", "127.0.0.2", *options))


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server whose clients need a certificate: alice's is valid, eve's is not."""
    folder, clients = tmp_path_factory.mktemp("mutual"), Authority("clients")
    (folder / "clients.pem").write_bytes(clients.certificate)
    clients.issue("alice").write(folder, "alice")
    Authority("eve").issue("alice").write(folder, "eve")
    yield from serving(Secured(folder, "--tls-client-ca", str(folder / "clients.pem")))


TRUST = ("--tls-ca", "ca.pem", "--tls-server-name", "localhost")
ALICE = ("--token-file", "alice.token")
CAT = ROOT / "examples" / "images" / "cat.jpg"


def test_health_needs_trust_but_no_token(guarded: Secured) -> None:
    """The authority and the name are checked; each error says what is right."""
    server = guarded.running.address
    assert guarded.gradcam("health", server, *TRUST).stdout == "SERVING\n"
    for options, message in (
        (("--tls-ca", "ca.pem"), "not for this address; --tls-server-name"),
        (("--tls-ca", "other.pem"), "certificate is not trusted; --tls-ca"),
        (("--tls",), "certificate is not trusted; --tls-ca"),
        ((), "it may need TLS"),
        ((*TRUST, "--tls-cert", "server.pem", "--tls-key", "other.pem"), "--tls-key must be a PEM"),
    ):
        assert message in guarded.refused("health", server, *options)


def test_every_command_asks_over_tls_with_a_token(guarded: Secured) -> None:
    """Flags and variables have the same effect."""
    where = ("--server", guarded.running.address, *TRUST, *ALICE)
    ended = guarded.gradcam("explain", CAT, *where, "-o", "out.jpg")
    assert "Egyptian cat" in ended.stdout
    assert "top_activation" in guarded.gradcam("layers", *where).stdout
    guarded.gradcam("compare", CAT, *where, "--method", "gradcam", "-o", "out.png")
    report = guarded.gradcam(
        *("evaluate", CAT, *where, "--method", "gradcam", "--steps", "2", "--json")
    )
    assert json.loads(report.stdout)["methods"]["gradcam"]["images"] == 1
    by_variables = guarded.gradcam(
        *("layers", "--server", guarded.running.address),
        GRADCAM_CLIENT_TLS_CA="ca.pem",
        GRADCAM_CLIENT_TLS_SERVER_NAME="localhost",
        GRADCAM_CLIENT_TOKEN_FILE="alice.token",
    )
    assert by_variables.stdout == guarded.gradcam("layers", *where).stdout


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ((), "the server needs a token; --token-file"),
        (("--token-file", "guess.token"), "the token is unknown to this server"),
        (("--token-file", "tokens.toml"), "a server's file of hashes"),
        (("--token-file", "missing"), "missing: No such file"),
    ],
)
def test_a_refused_token_is_one_line(
    guarded: Secured, token: tuple[str, ...], message: str
) -> None:
    """The error of every command is one line without the token."""
    for command in (("layers",), ("explain", CAT)):
        line = guarded.refused(*command, "--server", guarded.running.address, *TRUST, *token)
        assert message in line
        assert "guess" not in line.replace("guess.token", "")


def test_an_unknown_authority_is_one_line(guarded: Secured) -> None:
    """The error of calls and streams, which retry, is one line."""
    for command in (("layers",), ("explain", CAT)):
        where = ("--server", guarded.running.address, "--tls-ca", "other.pem")
        assert "certificate is not trusted" in guarded.refused(*command, *where, *ALICE)


def test_administration_goes_by_tokens_and_no_variable_of_tls(guarded: Secured) -> None:
    """The admin port has no TLS: variables for the public port have no effect on it."""
    found = re.search(r"Administered on (\S+)", guarded.running.text)
    assert found
    variables = {"GRADCAM_CLIENT_TLS_CA": "ca.pem", "GRADCAM_CLIENT_TOKEN_FILE": "alice.token"}
    reload = ("reload", found[1])
    assert "the server needs a token" in guarded.refused(*reload)
    assert "may not administer" in guarded.refused(*reload, **variables)
    assert "speaks plain text" in guarded.refused(*reload, "--tls-ca", "ca.pem")
    for how in (
        {**variables, "GRADCAM_TOKEN": "roots"},
        {"GRADCAM_CLIENT_TOKEN_FILE": "root.token"},
    ):
        assert guarded.gradcam(*reload, status=0, **how).stdout == "efficientnet-lite0\n"


def test_mutual_tls_needs_a_known_certificate(mutual: Secured) -> None:
    """No certificate, another authority's, and half of a pair are refused, by health, too."""
    trust, server = ("--tls-ca", "ca.pem"), mutual.running.address
    alice = ("--tls-cert", "alice.pem", "--tls-key", "alice.key")
    assert mutual.gradcam("health", server, *trust, *alice).stdout == "SERVING\n"
    where = ("--server", server, *trust, *alice)
    assert "Egyptian cat" in mutual.gradcam("explain", CAT, *where).stdout
    for client in ((), ("--tls-cert", "eve.pem", "--tls-key", "eve.key")):
        assert "or a client's certificate" in mutual.refused("health", server, *trust, *client)
    mixed = ("--tls-cert", "alice.pem", "--tls-key", "eve.key")
    assert "do not belong together" in mutual.refused("health", server, *trust, *mixed)
    half = mutual.gradcam("health", server, *trust, "--tls-key", "alice.key", status=2)
    assert "needs both --tls-cert and --tls-key" in half.stderr


def test_the_images_health_check_goes_by_variables(mutual: Secured) -> None:
    """The Dockerfile's command works with variables that trust the server's own certificate."""
    check = re.search(r"HEALTHCHECK.*?CMD (\[.*?\])", (ROOT / "Dockerfile").read_text(), re.DOTALL)
    assert check
    env = {
        "PATH": f"{Path(GRADCAM).parent}:{os.environ['PATH']}",
        "GRADCAM_PORT": mutual.running.address.rpartition(":")[2],
        "GRADCAM_CLIENT_TLS_CA": "server.pem",
        "GRADCAM_CLIENT_TLS_CERT": "alice.pem",
        "GRADCAM_CLIENT_TLS_KEY": "alice.key",
    }
    for variables, status in ((env, 0), ({**env, "GRADCAM_CLIENT_TLS_CA": "other.pem"}, 1)):
        ended = subprocess.run(
            json.loads(check[1]), cwd=mutual.folder, env=variables, timeout=60, check=False
        )
        assert ended.returncode == status
