"""Images of ``gradcam explain`` that are links."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradcam_client import ImageUrl
from gradcam_server.cli import main
from gradcam_server.cli.common import file_name
from support.web_site import web_site
from unit.client.fake_server import FakeServer, serving


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers with the number that it gets."""
    with serving() as fake:
        yield fake


def test_a_link_is_read_and_a_wrong_link_fails_alone(server: FakeServer, tmp_path: Path) -> None:
    """The answers name the links; the exit status is 1 because of the missing images."""
    (tmp_path / "8.png").write_bytes(b"8")
    with web_site() as site:
        images = [f"{site}/moved?size=1", f"{site}/missing", f"{site}/to-file", f"{tmp_path}/8.png"]
        command = ["explain", *images, "--json", "--server", server.target]
        result = CliRunner().invoke(main, command)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["path"] for answer in answers] == images
    assert [len(answer.get("predictions", [])) for answer in answers] == [1, 0, 0, 1]
    assert f"Error: {site}/missing: HTTP status 404 Not Found" in result.stderr
    assert "file:///etc/hostname' is not allowed" in result.stderr
    assert result.exit_code == 1


@pytest.mark.parametrize("link", ["ftp://example.org/cat.jpg", "s3://bucket/cat.jpg", "file:///x"])
def test_other_links_are_refused(link: str) -> None:
    """The error comes before any server is asked."""
    result = CliRunner().invoke(main, ["explain", link, "--server", "127.0.0.1:1"])
    assert result.exit_code == 2
    assert f"{link!r}, which is not an http or https link" in " ".join(result.stderr.split())


def test_a_file_with_the_name_of_a_link_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FakeServer
) -> None:
    """What exists as a file is never downloaded."""
    (tmp_path / "http:" / "x").mkdir(parents=True)
    (tmp_path / "http:" / "x" / "9.png").write_bytes(b"9")
    monkeypatch.chdir(tmp_path)
    command = ["explain", "http://x/9.png", "--json", "--server", server.target]
    assert CliRunner().invoke(main, command).exit_code == 0


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("https://example.org/photos/cat.jpg?size=9", "cat.jpg"),
        ("https://example.org/a%20cat.png", "a cat.png"),
        ("https://example.org/..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("https://example.org", "example.org"),
    ],
)
def test_outputs_are_named_from_the_last_part_of_a_link(link: str, name: str) -> None:
    """No link can name a file outside of the folder of outputs."""
    assert file_name(ImageUrl(link)) == Path(name)
