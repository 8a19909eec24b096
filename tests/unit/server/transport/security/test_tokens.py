"""The token file."""

import hmac
import logging
import os
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradcam_server.cli.token import token as command
from gradcam_server.errors import StartupError
from gradcam_server.transport.security import tokens
from gradcam_server.transport.security.tokens import (
    Token,
    TokenFile,
    hash_token,
    new_token,
    to_toml,
)


def write(path: Path, *entries: Token) -> Path:
    path.write_text("\n".join(to_toml(entry) for entry in entries))
    return path


def entry(name: str, secret: str) -> Token:
    return Token(name, (hash_token(secret),))


def test_a_token_is_found_by_its_hash(tmp_path: Path) -> None:
    """Only the token itself is found, not its hash or a part of it."""
    secret = new_token()
    file = TokenFile(write(tmp_path / "t.toml", entry("a", "other"), entry("b", secret)))
    found = file.find(secret)
    assert found
    assert found.name == "b"
    for wrong in ("", secret[:-1], secret + "x", hash_token(secret), "\udcff", "é"):
        assert file.find(wrong) is None


def test_the_file_does_not_hold_the_token(tmp_path: Path) -> None:
    """The file's content gives no access."""
    path = tmp_path / "t.toml"
    ended = CliRunner().invoke(command, ["alice", "--append", str(path)])
    secret = ended.output.strip()
    assert len(secret) > 40
    assert secret not in path.read_text()
    assert TokenFile(path).find(secret) == entry("alice", secret)


def test_every_entry_is_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hmac.compare_digest compares, and a hit does not end the search."""
    compared: list[tuple[str, str]] = []

    def compare(known: str, presented: str) -> bool:
        compared.append((known, presented))
        return known == presented

    monkeypatch.setattr(hmac, "compare_digest", compare)
    file = TokenFile(write(tmp_path / "t.toml", *(entry(name, name) for name in "abc")))
    assert file.find("a") is not None
    assert file.find("z") is None
    assert compared == [(hash_token(known), hash_token(guess)) for guess in "az" for known in "abc"]


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Whether it is written in place or replaced: only the new tokens are valid."""
    path = write(tmp_path / "t.toml", entry("a", "one"))
    file = TokenFile(path)
    write(path, entry("a", "two!"), entry("b", "three"))
    assert (file.find("one"), file.find("two!")) == (None, entry("a", "two!"))
    write(tmp_path / "new", entry("a", "four")).replace(path)
    assert (file.find("two!"), file.find("four")) == (None, entry("a", "four"))


@pytest.mark.parametrize("broken", ["", "[[tokens", "[[tokens]]\nname = 'a'\n", None])
def test_a_broken_new_file_keeps_the_old_tokens(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A typo or a missing file locks nobody out; the log has it once."""
    path = write(tmp_path / "t.toml", entry("a", "one"))
    file = TokenFile(path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert file.find("one") == entry("a", "one")
    assert caplog.text.count("The old tokens stay") == 1
    write(path, entry("a", "repaired"))
    assert file.find("repaired") == entry("a", "repaired")


def test_a_token_is_replaced_without_a_gap(tmp_path: Path) -> None:
    """While sha256 is a list, the old and the new token are the same caller."""
    path = tmp_path / "t.toml"
    path.write_text(
        f'[[tokens]]\nname = "a"\nsha256 = ["{hash_token("old")}", "{hash_token("new")}"]'
    )
    file = TokenFile(path)
    assert file.find("old") == file.find("new") != None  # noqa: E711
    assert len(file.current()) == 1


GOOD = f'name = "a"\nsha256 = "{"0" * 64}"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold \\[\\[tokens\\]\\]"),
        ("tokens = []", "must hold \\[\\[tokens\\]\\]"),
        ("tokens = [1]", "must be tables"),
        (f"other = 1\n[[tokens]]\n{GOOD}", "and nothing else"),
        ("[[tokens]]\nsha256 = ''", "the name None must be"),
        (f"[[tokens]]\n{GOOD}".replace('"a"', '"a b"'), "the name 'a b' must be"),
        (f"[[tokens]]\n{GOOD}".replace('"a"', '"' + "n" * 65 + '"'), "must be 1 to 64"),
        ("[[tokens]]\nname = 'a'\nsha256 = 'secret'", "sha256 must be 64 hexadecimal digits"),
        ("[[tokens]]\nname = 'a'\nsha256 = []", "sha256 must be 64 hexadecimal digits"),
        (f"[[tokens]]\n{GOOD}token = 'secret'", "unknown token; the keys are: name, sha256"),
        (f"[[tokens]]\n{GOOD}admin = 1", "admin must be true or false"),
        (f"[[tokens]]\n{GOOD}max_concurrent = 0", "max_concurrent must be a whole number"),
        (f"[[tokens]]\n{GOOD}max_concurrent = true", "max_concurrent must be a whole number"),
        (f"[[tokens]]\n{GOOD}max_requests_per_s = 0", "must be a number over 0"),
        (f"[[tokens]]\n{GOOD}max_requests_per_s = nan", "must be a number over 0"),
        (f"[[tokens]]\n{GOOD}max_requests_per_s = inf", "must be a number over 0"),
        (f"[[tokens]]\n{GOOD}[[tokens]]\n{GOOD}", "two tokens have the same name"),
        (f"[[tokens]]\n{GOOD}[[tokens]]\n{GOOD}".replace('"a"', '"b"', 1), "the same sha256"),
    ],
)
def test_a_wrong_file_is_refused_with_what_would_be_right(
    tmp_path: Path, text: str, message: str
) -> None:
    """The error at start names the file and the token."""
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(StartupError, match=f"--token-file .*t.toml: .*{message}"):
        TokenFile(path)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    """Otherwise a typo in its name would let everybody call."""
    with pytest.raises(StartupError, match="--token-file .*No such file"):
        TokenFile(tmp_path / "no.toml")


def test_the_command_prints_the_token_and_its_entry(tmp_path: Path) -> None:
    """The printed entry can be pasted into the file."""
    options = ["bob", "--admin", "--max-requests-per-s", "2.5", "--max-concurrent", "3"]
    secret, _, rest = CliRunner().invoke(command, options).output.partition("\n\n")
    path = tmp_path / "t.toml"
    path.write_text(rest)
    assert TokenFile(path).find(secret) == Token("bob", (hash_token(secret),), True, 2.5, 3)


def test_the_command_appends_and_keeps_the_rest(tmp_path: Path) -> None:
    """Comments and modes stay; an existing name is refused, and changes nothing."""
    path = tmp_path / "t.toml"
    write(path, entry("a", "one"))
    path.write_text("# ours\n" + path.read_text())
    path.chmod(0o640)
    assert CliRunner().invoke(command, ["b", "--append", str(path)]).exit_code == 0
    before = path.read_text()
    assert before.startswith("# ours\n[[tokens]]")
    assert [one["name"] for one in tomllib.loads(before)["tokens"]] == ["a", "b"]
    assert path.stat().st_mode & 0o777 == 0o640
    again = CliRunner().invoke(command, ["b", "--append", str(path)])
    assert again.exit_code == 1
    assert "has a token of the name b" in again.output
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["t.toml"]  # noqa: PTH208


def test_tokens_are_long_and_never_the_same() -> None:
    """256 random bits can neither be guessed nor found in a table of hashes."""
    made = {new_token() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(one) == len(tokens._PREFIX) + 43 for one in made)
