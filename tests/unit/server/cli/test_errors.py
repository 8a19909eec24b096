"""Errors of commands, before any model is loaded."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gradcam_server.cli import main
from unit.client.conftest import PROXY_VARIABLES
from unit.client.fake_server import serving

OF_A_MODEL = (
    ("--preprocessing", "tf"),
    ("--weights", "random"),
    ("--weights", "imagenet"),
    ("--labels", "README.md"),
    ("--seed", "3"),
    ("--seed", "0"),
    ("--input-size", "64x64"),
    ("--custom-objects", "json"),
)
OF_A_CONNECTION = (
    ("--tls",),
    ("--tls-ca", "ca.pem"),
    ("--tls-cert", "a.pem"),
    ("--tls-server-name", "a"),
    ("--token-file", "a"),
)


def gradcam(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


def asking(command: str, folder: Path) -> tuple[object, ...]:
    return {
        "explain": ("explain", folder / "cat.jpg"),
        "compare": ("compare", folder / "cat.jpg", "-o", folder / "out.png"),
        "evaluate": ("evaluate", folder / "cat.jpg"),
        "layers": ("layers",),
        "batch": ("batch", folder, folder / "out"),
    }[command]


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port at which nothing listens, reserved for the test."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


# Options.


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *product(["explain", "compare", "evaluate", "batch"], OF_A_MODEL),
        ("layers", ("--custom-objects", "json")),
    ],
)
def test_an_option_of_the_server_is_refused_with_it(
    tmp_path: Path, command: str, option: tuple[str, ...]
) -> None:
    """An option without effect is an error, even with its default value."""
    result = gradcam(*asking(command, tmp_path), "--server", "localhost:1", *option)
    assert result.exit_code == 2
    assert f"{option[0]} belongs to the server: give it to gradcam serve" in said(result)


@pytest.mark.parametrize("command", ["explain", "compare", "evaluate", "layers"])
def test_a_models_file_is_not_sent_to_a_server(tmp_path: Path, command: str) -> None:
    """The error says to give the name of a server's model."""
    where = ("--server", "localhost:1", "--model", "pets=pets.keras")
    result = gradcam(*asking(command, tmp_path), *where)
    assert result.exit_code == 2
    assert "with --server give the name of one of the server's models" in said(result)


@pytest.mark.parametrize("option", OF_A_CONNECTION, ids=" ".join)
@pytest.mark.parametrize("command", ["explain", "compare", "evaluate", "layers"])
def test_an_option_of_a_connection_needs_a_server(
    tmp_path: Path, command: str, option: tuple[str, ...]
) -> None:
    """An option without effect is an error."""
    result = gradcam(*asking(command, tmp_path), *option)
    assert result.exit_code == 2
    assert f"{option[0]} needs --server: it says how to connect to one" in said(result)


@pytest.mark.parametrize(
    ("typed", "meant"), [("explian", "explain"), ("heatlh", "health"), ("serv", "serve")]
)
def test_a_mistyped_command_is_recognised(typed: str, meant: str) -> None:
    """The error names the likely one."""
    result = gradcam(typed, "cat.jpg")
    assert result.exit_code == 2
    assert f"there is no command '{typed}'; did you mean {meant}" in said(result)


def test_an_unknown_command_is_answered_with_all() -> None:
    """The error lists all commands, if none is similar."""
    result = gradcam("xyz")
    assert result.exit_code == 2
    assert "there is no command 'xyz'; batch, bench, compare" in said(result)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("explain", "cat.jpg", "--clas", "1"), "--class"),
        (("explain", "cat.jpg", "--colourmap", "jet"), "--colormap"),
        (("health", "localhost:1", "--servce", "x"), "--service"),
        (("--verson",), "--version"),
    ],
)
def test_a_mistyped_option_is_recognised(arguments: tuple[str, ...], meant: str) -> None:
    """The error names the likely one."""
    result = gradcam(*arguments)
    assert result.exit_code == 2
    assert meant in said(result)


# Missing packages.


@pytest.mark.parametrize(
    ("command", "package", "asks"),
    [
        ("layers", "prometheus_client", True),
        ("explain", "cv2", True),
        ("export", "tensorflow", False),
    ],
)
def test_a_missing_server_names_the_command_and_the_extra(
    tmp_path: Path, command: str, package: str, asks: bool
) -> None:
    """The error names --server, if the command has it."""
    arguments = (
        ("export", "-o", tmp_path / "x") if command == "export" else asking(command, tmp_path)
    )
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from gradcam_server.cli import main; main(prog_name='gradcam')"
    )
    run = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(run, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    error = " ".join(ended.stderr.split())
    assert f"Error: gradcam {command} needs the packages of the server" in error
    assert f"(here {package} is missing): pip install 'gradcam-server[cpu]'" in error
    assert ("with --server HOST:PORT it uses" in error) is asks


# Servers that do not run.


def test_a_server_that_is_not_there_is_named_once(tmp_path: Path, free_port: int) -> None:
    """Every command says where nothing listens, and how to start a server."""
    (tmp_path / "cat.jpg").write_bytes(b"7")
    address = f"localhost:{free_port}"
    for arguments in (
        ("health", address),
        ("reload", address),
        ("layers", "--server", address),
        (*asking("explain", tmp_path), "--server", address),
        (*asking("batch", tmp_path), "--server", address),
    ):
        result = gradcam(*arguments)
        assert result.exit_code == 1
        assert f"nothing listens at {address}; start a server there (gradcam serve)" in said(result)
        assert "UNKNOWN" not in said(result)
    assert said(gradcam("health", address)).count(address) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_link_is_no_server(tmp_path: Path, scheme: str) -> None:
    """Every command says what an address looks like."""
    link = f"{scheme}://localhost:50051"
    for arguments in (
        ("health", link),
        ("reload", link),
        ("layers", "--server", link),
        (*asking("explain", tmp_path), "--server", link),
    ):
        result = gradcam(*arguments)
        assert result.exit_code == 1
        assert f'"host:port" without {scheme}://' in said(result)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_no_proxy_leads_to_a_server_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int, variable: str
) -> None:
    """Health checks and reloads on this machine work behind a company's proxy."""
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port}")
    (tmp_path / "1.jpg").write_bytes(b"7")
    with serving() as server:
        assert gradcam("health", server.target).stdout == "SERVING\n"
        assert gradcam("layers", "--server", server.target).exit_code == 0
        batch = ("batch", tmp_path, tmp_path / "out", "--server", server.target)
        assert "proxy" not in gradcam(*batch).output
        assert len(server.received) == 1
        assert "UNIMPLEMENTED" in said(gradcam("reload", server.target))


def test_a_proxy_on_the_way_is_named(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    """health, reload and commands of the client name the proxy."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    address = "gradcam.example.org:50051"
    for arguments in (("health", address), ("reload", address), ("layers", "--server", address)):
        result = gradcam(*arguments)
        assert result.exit_code == 1
        assert "environment variable http_proxy" in said(result)
        assert "no_proxy=gradcam.example.org" in said(result)


# Files that are not images.


def test_what_is_no_image_is_named_by_every_command(tmp_path: Path, free_port: int) -> None:
    """The error is short, however long the argument is."""
    (tmp_path / "cat.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    text = "iVBORw0KGgo" + "A" * 9000
    server = ("--server", f"localhost:{free_port}")
    link = f"http://localhost:{free_port}/b.jpg"
    # explain reads links.
    said_of_links = {"explain": f"{link}: ", "evaluate": "b.jpg' is a link"}
    for command, said_of_link in said_of_links.items():
        result = gradcam(command, tmp_path / "cat.jpg", link, text, *server)
        assert result.exit_code == 1
        for expected in (
            "the file is HEIC",
            said_of_link,
            "base64 text of 9011",
        ):
            assert expected in said(result), command
        assert len(said(result)) < 1500
    result = gradcam("compare", tmp_path / "cat.jpg", "-o", tmp_path / "out.png", *server)
    assert result.exit_code == 1
    assert "the file is HEIC" in said(result)
