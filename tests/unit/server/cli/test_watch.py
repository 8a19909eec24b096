"""The options of gradcam watch, and its messages."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gradcam_server.cli import common, main
from gradcam_server.watch.options import WatchOptions


def watch(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["watch", *map(str, arguments)])


def options(**changes: Any) -> WatchOptions:
    unset = ("output", "parquet", "show", "metrics_port", "fps", "target", "reuse")
    defaults: dict[str, Any] = {
        **dict.fromkeys((*unset, "max_in_flight")),
        **dict.fromkeys(("as_json", "quiet"), False),
        "hold": 1,
        "audit_share": 0.05,
        "max_lag_s": 1.0,
        "colormap": "jet",
        "alpha": 0.4,
    }
    return WatchOptions(**{**defaults, **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'SOURCE...'"),
        (("clip.mp4", "--max-lag", "0"), "not in the range x>0"),
        (("clip.mp4", "--reuse", "0"), "not in the range x>0"),
        (("0", "--json", "--layer", "a", "--layer", "b"), "name one --layer, or add --fusion"),
        (("0",), "name where the results go: -o, --json, --parquet or --show"),
        (("0", "--json", "--class", "tabby", "--hold", "5"), "a given class stays"),
        (("0", "--token-file", "x"), "needs --server"),
        (("0", "--server", "a:1", "--weights", "random"), "belongs to the server"),
    ],
    ids=["no source", "lag", "reuse", "layers", "no output", "hold", "token", "weights"],
)
def test_wrong_options_are_told(arguments: tuple[str, ...], message: str) -> None:
    """The error says what is wrong, and nothing is loaded or opened."""
    result = watch(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("package", "extra"), [("av", "watch"), ("watchdog", "watch"), ("pyarrow", "batch")]
)
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    """The error names the extra to install."""
    monkeypatch.setattr(common, "find_spec", lambda name: None if name == package else True)
    result = watch(tmp_path, "--parquet", tmp_path / "out")
    assert result.exit_code == 1
    assert f"pip install 'gradcam-server[{extra}]'" in result.output


@pytest.mark.parametrize("value", [(), ("3.5",)], ids=["without a value", "with one"])
def test_reuse_has_a_usual_value(value: tuple[str, ...]) -> None:
    """--reuse alone takes the usual threshold, before other options too."""
    from gradcam_server.cli.watch import watch as command

    context = command.make_context("watch", ["0", "--reuse", *value, "--json"])
    assert context.params["reuse"] == float(value[0] if value else 2)
    assert context.params["as_json"]


def test_calls_in_flight_fit_the_source() -> None:
    """A live source has one call; a file has several, unless its frames depend on each other."""
    assert options().calls_of(is_live=True) == 1
    assert options().calls_of(is_live=False) > 1
    assert options(reuse=2.0).calls_of(is_live=False) == 1
    assert options(hold=3).calls_of(is_live=False) == 1
    assert options(reuse=2.0, max_in_flight=5).calls_of(is_live=False) == 5
    assert options(max_in_flight=5).calls_of(is_live=True) == 5
