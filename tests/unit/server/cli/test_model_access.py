"""How commands compile graphs in this process, and their messages about it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gradcam_client import ImageExplanation
from gradcam_client.results import ServingStats
from gradcam_server.cli import local
from gradcam_server.cli.explain_output import print_result, result_as_json
from gradcam_server.cli.model_access import ModelAccess, say_compiled
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Compiler
from gradcam_server.engine.engine import FirstUse

HERE = ModelAccess(None, "efficientnet-lite0", "random", 0)
THERE = dataclasses.replace(HERE, server="localhost:1")


def result(compile_us: int) -> ImageExplanation:
    stats = ServingStats(1000, 2000, 3000, 4000, 1, 1, compile_us=compile_us)
    return ImageExplanation(
        model="m",
        model_version="",
        image_height=3,
        image_width=4,
        predictions=(),
        explanations=(),
        logits=None,
        stats=stats,
    )


class Opened(Exception):  # noqa: N818 - it ends the test's way
    """Holds the arguments of an engine."""


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(config: ServeConfig, first_use: FirstUse, on_slow_compile: Any) -> None:
        raise Opened(config, first_use, on_slow_compile)

    monkeypatch.setattr(local, "Engine", engine)


def opened(count: int) -> Opened:
    with pytest.raises(Opened) as caught, HERE.open(count, 1):
        pass
    return caught.value


@pytest.mark.parametrize(
    ("count", "first_use"),
    [
        (1, FirstUse.SOONEST),
        (16, FirstUse.SOONEST),
        (999, FirstUse.SOONEST),
        (1000, FirstUse.FASTEST),
        (5000, FirstUse.FASTEST),
    ],
)
def test_the_number_of_images_decides_how_graphs_are_compiled(
    count: int, first_use: FirstUse
) -> None:
    """For many images all compilers are timed; for few images that would take too long."""
    assert opened(count).args[1] is first_use


@pytest.mark.parametrize("compiler", [Compiler.OPENVINO, Compiler.TENSORFLOW, Compiler.XLA])
def test_a_compiler_that_was_asked_for_is_used(compiler: Compiler) -> None:
    """A given compiler is used even for one image."""
    with pytest.raises(Opened) as caught:
        local.LocalClient(ServeConfig(compiler=compiler), FirstUse.SOONEST)
    assert caught.value.args[1] is FirstUse.FASTEST


def test_a_slow_compilation_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """One line before the compilation, with or without a terminal."""
    opened(1).args[2]("m, gradcam of the logit at top")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "compiling m, gradcam of the logit at top (first use) ...\n")


@pytest.mark.parametrize(
    ("access", "compile_us", "said"),
    [
        (THERE, 12_345_678, "the server took 12.3 s to compile this graph (first use)\n"),
        (THERE, 1_000_000, ""),
        (THERE, 0, ""),
        (HERE, 12_345_678, ""),  # reported before it began
    ],
)
def test_a_server_that_compiled_long_is_the_reason_for_a_late_answer(
    capsys: pytest.CaptureFixture[str], access: ModelAccess, compile_us: int, said: str
) -> None:
    """A long compilation by a server is reported on stderr."""
    say_compiled(access, result(compile_us))
    out, err = capsys.readouterr()
    assert (out, err) == ("", said)


@pytest.mark.parametrize(
    ("compile_us", "line"),
    [
        (0, "decode 1.0 ms, queue 2.0 ms, compute 3.0 ms, render 4.0 ms (batch of 1)"),
        (
            29_330_000,
            "decode 1.0 ms, queue 2.0 ms, compile 29330.0 ms, compute 3.0 ms, render 4.0 ms "
            "(batch of 1)",
        ),
    ],
)
def test_compiling_is_not_called_queue(
    capsys: pytest.CaptureFixture[str], compile_us: int, line: str
) -> None:
    """The text has the compile time if there was any; JSON always has it."""
    print_result(Path("cat.jpg"), result(compile_us), [])
    assert capsys.readouterr().out.splitlines()[-1] == f"  time: {line}"
    assert result_as_json(Path("cat.jpg"), result(compile_us))["stats"] == {
        "decode_us": 1000,
        "queue_us": 2000,
        "compile_us": compile_us,
        "compute_us": 3000,
        "render_us": 4000,
        "batch_size": 1,
        "padded_batch_size": 1,
        "pass_count": 1,
    }
