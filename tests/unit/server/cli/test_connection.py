"""The options to connect to a server, without a server."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
from click.testing import CliRunner, Result

from gradcam_server.cli import main
from gradcam_server.cli.connection import Connection, connection_options
from gradcam_server.cli.errors import readable
from gradcam_server.cli.health import health
from gradcam_server.cli.serve import serve
from support.certificates import Authority

ASKING = ("batch", "compare", "evaluate", "explain", "health", "layers", "reload")
ELSEWHERE = "example.org:50051"


@pytest.fixture
def parse() -> Callable[..., Connection]:
    """Parses the options of a connection."""
    seen: list[Connection] = []

    @click.command()
    @connection_options()
    def command(connection: Connection) -> None:
        seen.append(connection)

    def parse(*arguments: str, **variables: str) -> Connection:
        result = CliRunner().invoke(command, arguments, env=variables)
        assert result.exit_code == 0, result.output
        return seen[-1]

    return parse


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ca.pem, alice.pem, alice.key and token."""
    authority = Authority("ours")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    authority.issue("alice").write(tmp_path, "alice")
    (tmp_path / "token").write_text("secret\n\n[[tokens]]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of channels that were opened over TLS."""
    seen: list[Any] = []

    def secure_channel(target: str, _: object, options: Any = ()) -> grpc.Channel:
        seen.append(dict(options))
        return grpc.insecure_channel(target)

    monkeypatch.setattr(grpc, "secure_channel", secure_channel)
    return seen


def ask(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(health, arguments, env=variables)


def options_of(name: str) -> dict[str, click.Parameter]:
    command = main.get_command(click.Context(main), name)
    assert command
    return {option: one for one in command.params for option in one.opts}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("tls", "true", Connection(tls=True)),
        ("tls-ca", "x", Connection(tls_ca=Path("x"))),
        ("tls-cert", "x", Connection(tls_cert=Path("x"))),
        ("tls-key", "x", Connection(tls_key=Path("x"))),
        ("tls-server-name", "x", Connection(tls_server_name="x")),
        ("token-file", "x", Connection(token_file=Path("x"))),
    ],
)
def test_each_option_has_a_variable(
    parse: Callable[..., Connection], name: str, value: str, expected: Connection
) -> None:
    """Its name is GRADCAM_CLIENT_ and the option's; an empty value is ignored."""
    variable = "GRADCAM_CLIENT_" + name.replace("-", "_").upper()
    flag = (f"--{name}",) if name == "tls" else (f"--{name}", value)
    assert parse(*flag) == parse(**{variable: value}) == expected
    assert parse(**{variable: ""}) == parse() == Connection()


def test_all_commands_that_ask_have_the_same_options() -> None:
    """Only reload has no variables for TLS, as its port has no TLS."""

    @connection_options()
    def none() -> None: ...

    ours = {one.opts[0]: one.envvar for one in none.__click_params__}  # type: ignore[attr-defined]
    assert len(ours) == 6
    for name in ASKING:
        theirs = options_of(name)
        for flag, variable in ours.items():
            expected = None if name == "reload" and flag.startswith("--tls") else variable
            assert theirs[flag].envvar == expected, (name, flag)
    servers = {one.envvar for one in serve.params}
    assert not servers & {*ours.values(), "GRADCAM_TOKEN"}


@pytest.mark.parametrize(
    "connection",
    [
        Connection(tls=True),
        Connection(tls_ca=Path("ca.pem")),
        Connection(tls_cert=Path("alice.pem"), tls_key=Path("alice.key")),
        Connection(tls_server_name="gradcam.example.org"),
    ],
)
@pytest.mark.usefixtures("files")
def test_every_setting_of_tls_implies_it(opened: list[Any], connection: Connection) -> None:
    """For the client and for a channel, with the name in the certificate."""
    connection.channel("localhost:1").close()
    connection.client("localhost:1").close()
    names = [options.get("grpc.ssl_target_name_override") for options in opened]
    assert names == [connection.tls_server_name] * 2


async def test_no_channel_takes_a_proxy_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synchronous or asynchronous; to other machines gRPC's own rule holds."""
    seen: list[object] = []
    for module in (grpc, grpc.aio):

        def opening(target: str, options: Any, open_channel: Any = module.insecure_channel) -> Any:
            seen.append(dict(options).get("grpc.enable_http_proxy"))
            return open_channel(target, options)

        monkeypatch.setattr(module, "insecure_channel", opening)
    for server in ("127.0.0.1:1", ELSEWHERE):
        Connection().channel(server).close()
        await Connection().aio_channel(server).close()
    assert seen == [0, 0, None, None]


def test_plain_text_is_the_default(opened: list[Any]) -> None:
    """On loopback, and elsewhere."""
    for server in ("localhost:1", ELSEWHERE):
        Connection().channel(server).close()
        Connection().client(server).close()
    assert opened == []
    assert Connection().metadata == ()


@pytest.mark.parametrize("half", ["--tls-cert", "--tls-key"])
@pytest.mark.usefixtures("files")
def test_half_of_a_pair_is_wrong_usage(half: str) -> None:
    """A certificate without its key, and the other way round."""
    ended = ask("localhost:1", half, "alice.pem")
    assert ended.exit_code == 2
    assert "Error: mutual TLS needs both --tls-cert and --tls-key" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tls-ca", "missing"), "cannot read missing: No such file or directory"),
        (("--tls-ca", "."), "cannot read .: Is a directory"),
        (("--tls-ca", "alice.key"), "--tls-ca must be a PEM file with a CERTIFICATE"),
        (("--tls-cert", "alice.key", "--tls-key", "alice.key"), "--tls-cert must be a PEM file"),
        (("--tls-cert", "alice.pem", "--tls-key", "alice.pem"), "--tls-key must be a PEM file"),
        (("--token-file", "missing"), "--token-file missing: No such file or directory"),
        (("--token-file", "empty"), "--token-file empty: a token must be printable ASCII"),
        (("--token-file", "two"), "--token-file two: a token must be printable ASCII"),
        (("--token-file", "binary"), "--token-file binary: it is not text"),
        (("--token-file", "tokens.toml"), "--token-file tokens.toml is a server's file of hashes"),
    ],
)
def test_files_that_are_of_no_use_are_named(
    files: Path, arguments: tuple[str, ...], message: str
) -> None:
    """The error has one line, exit status 1, and no part of a token."""
    (files / "empty").write_text("\n")
    (files / "two").write_text("a secret")
    (files / "binary").write_bytes(b"\xff\x00secret")
    (files / "tokens.toml").write_text('[[tokens]]\nname = "alice"\n')
    ended = ask("localhost:1", *arguments)
    assert ended.exit_code == 1
    assert ended.stderr.startswith(f"Error: {message}")
    assert ended.stderr.count("\n") == 1
    assert "secret" not in ended.stderr


def test_a_target_that_is_none_is_named() -> None:
    """No traceback for a typo."""
    ended = ask("a:1,,b:1")
    assert ended.exit_code == 1
    assert 'Error: target must be "host:port"' in ended.stderr


@pytest.mark.usefixtures("files")
def test_a_token_leaves_the_machine_over_tls_alone(opened: list[Any]) -> None:
    """Without TLS the error names the options, for client and channel; loopback needs no TLS."""
    connection = Connection(token_file=Path("token"))
    for begin in (connection.client, connection.channel):
        with pytest.raises(click.ClickException, match=f"token to {ELSEWHERE} needs TLS: --tls"):
            begin(ELSEWHERE)
    connection.client("localhost:1").close()
    Connection(token_file=Path("token"), tls=True).client(ELSEWHERE).close()
    assert len(opened) == 1


@pytest.mark.usefixtures("files")
def test_the_first_line_of_the_file_is_the_token() -> None:
    """The output of gradcam token is enough, and so is a pipe, which is read once."""
    sent = (("authorization", "Bearer secret"),)
    assert Connection(token_file=Path("token")).metadata == sent
    read, write = os.pipe()
    os.write(write, b"secret\n")
    os.close(write)
    connection = Connection(token_file=Path(f"/dev/fd/{read}"))
    connection.channel("localhost:1").close()
    assert connection.metadata == sent
    os.close(read)


@pytest.mark.parametrize(
    ("arguments", "variables", "token"),
    [
        ((), {"GRADCAM_TOKEN": " theirs\n"}, "theirs"),
        ((), {"GRADCAM_TOKEN": "theirs", "GRADCAM_CLIENT_TOKEN_FILE": "token"}, "theirs"),
        ((), {"GRADCAM_TOKEN": " ", "GRADCAM_CLIENT_TOKEN_FILE": "token"}, "secret"),
        (("--token-file", "token"), {"GRADCAM_TOKEN": "theirs"}, "secret"),
    ],
)
@pytest.mark.usefixtures("files")
def test_the_token_that_was_said_last_counts(
    parse: Callable[..., Connection],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    variables: dict[str, str],
    token: str,
) -> None:
    """The order is: flag, variable of the token, variable of the file."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert parse(*arguments).metadata == (("authorization", f"Bearer {token}"),)


def test_without_a_server_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of a connection do not stop commands that work in their own process."""

    def describe(*_: object) -> None:
        raise click.ClickException("in-process")

    monkeypatch.setattr("gradcam_server.cli.local.describe_model", describe)
    missing = {"GRADCAM_CLIENT_TLS_CERT": "missing", "GRADCAM_CLIENT_TOKEN_FILE": "missing"}
    ended = CliRunner().invoke(main, ["layers"], env=missing)
    assert ended.stderr == "Error: in-process\n"


@pytest.mark.parametrize(("name", "expected"), [("serve", None), ("health", "NONE")])
def test_grpc_is_silent_but_for_serving(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: str | None
) -> None:
    """Commands silence gRPC's log, which repeats their errors; a server keeps it."""
    monkeypatch.setenv("GRPC_VERBOSITY", "x")  # so that it is restored
    monkeypatch.delenv("GRPC_VERBOSITY")
    options_of(name)
    assert os.environ.get("GRPC_VERBOSITY") == expected


def test_other_errors_stay_as_they_are() -> None:
    """Other errors get no remedy."""
    assert readable("Socket closed") == "Socket closed"
    assert readable("unknown class 'x'") == "unknown class 'x'"
