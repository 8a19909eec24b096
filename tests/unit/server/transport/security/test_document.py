"""docs/security.md: each threat has its test, and each setting exists."""

import ast
import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from gradcam_server.cli.health import health
from gradcam_server.config.settings import ServeConfig, flag

ROOT = Path(__file__).resolve().parents[5]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
HEADER = ["asset", "threat", "mitigation", "setting", "test"]


def rows() -> list[dict[str, str]]:
    """Returns the rows of the page's tables."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        dict(zip(HEADER, one, strict=True))
        for one in cells
        if one != HEADER and not set(one[0]) <= {"-"}
    ]


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    """Returns the names of a file's tests."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(one.name for one in functions if one.name.startswith("test_"))


def test_the_tables_are_read() -> None:
    """Without rows the other tests would pass."""
    assert len(rows()) == PAGE.count("::test_") > 30


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["threat"])
def test_every_threat_has_a_test_that_exists(row: dict[str, str]) -> None:
    """The table has the file and the name of each test."""
    assert row["asset"]
    assert row["mitigation"]
    named = re.fullmatch(r"`(tests/\S+\.py)::(test_\w+)`", row["test"])
    assert named, row["test"]
    assert named[2] in names_of_tests(ROOT / named[1])


def test_every_flag_of_the_page_exists() -> None:
    """The keys of tokens, which have no dashes, exist too."""
    known = {flag(field.name) for field in dataclasses.fields(ServeConfig)} | {"--append"}
    known |= {option for one in health.params for option in one.opts}
    assert set(re.findall(r"--[a-z][a-z0-9-]+", PAGE)) <= known
    settings = [row["setting"] for row in rows()]
    assert {"`max_requests_per_s`", "`max_concurrent`", "`--token-file`"} <= set(settings)


def test_the_pages_token_file_can_be_read(tmp_path: Path) -> None:
    """The example of the page is a valid token file."""
    from gradcam_server.transport.security.tokens import read_tokens

    example = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert example
    path = tmp_path / "tokens.toml"
    path.write_text(example[1])
    assert [(token.name, token.admin) for token in read_tokens(path)] == [
        ("alice", False),
        ("operator", True),
    ]
