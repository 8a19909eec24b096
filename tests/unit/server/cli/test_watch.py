"""The options of gradcam watch, its messages, and its ends."""

import asyncio
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from gradcam_client import ImageExplanation
from gradcam_server.batch.errors import OutputError
from gradcam_server.cli import common, main
from gradcam_server.cli.watch import _Run
from gradcam_server.watch.options import WatchOptions
from gradcam_server.watch.outputs import parquet
from gradcam_server.watch.sources.naming import parse_sources
from support.videos import write_video
from support.watch_command import frames_in
from support.watch_results import answer


def watch(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["watch", *map(str, arguments)])


def options(**changes: Any) -> WatchOptions:
    unset = ("output", "parquet", "show", "metrics_port", "fps", "target", "reuse")
    defaults: dict[str, Any] = {
        **dict.fromkeys((*unset, "max_in_flight")),
        **dict.fromkeys(("as_json", "json_maps", "quiet"), False),
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
        (("0", "-o", "a.mp4", "--json-maps"), "--json-maps needs --json"),
        (("0", "--json", "--class", "tabby", "--hold", "5"), "a given class stays"),
        (("0", "--token-file", "x"), "needs --server"),
        (("0", "--server", "a:1", "--weights", "random"), "belongs to the server"),
    ],
    ids=["no source", "lag", "reuse", "layers", "no output", "maps", "hold", "token", "weights"],
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


class Explaining:
    """Answers each image at once.

    Args:
        at_frame: Called when the frame of that number is asked for.
        number: The number, counted from 0.
    """

    def __init__(self, at_frame: Callable[[], object] = lambda: None, number: int = 5) -> None:
        self._at_frame, self._number = at_frame, number
        self._count = -1  # the first call is not of a frame

    async def explain(self, image: Any, **_: Any) -> ImageExplanation:
        """Explains an image of 48 x 64."""
        if self._count == self._number:
            self._at_frame()
        self._count += 1
        await asyncio.sleep(0.001)
        return answer((48, 64))


@pytest.fixture
def files() -> Iterator[ExitStack]:
    """Closes the files of a test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of 200 frames."""
    return write_video(tmp_path / "clip.mp4", [number / 30 for number in range(200)])


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """The command leaves its handlers of signals in place; SIGHUP is as in a terminal."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run(clip: Path, client: Explaining, **changes: Any) -> int:
    """Watches a video in this process, and returns the exit status."""
    return asyncio.run(_Run(parse_sources([str(clip)]), options(**changes), {})(client))


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_closes_every_output(
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    """Ctrl-C, SIGTERM and a terminal that is closed: all outputs have the same frames."""
    client = Explaining(lambda: os.kill(os.getpid(), number))
    out, table = tmp_path / "out.mp4", tmp_path / "table"
    assert run(clip, client, output=out, parquet=table, as_json=True) == status
    printed = capsys.readouterr()
    numbers = [json.loads(line)["number"] for line in printed.out.splitlines()]
    assert 5 <= len(numbers) < 200
    assert f"{len(numbers)} explained" in printed.err
    assert "Stopping; once more quits at once." in printed.err
    assert frames_in(out) == len(numbers)
    assert list(pd.read_parquet(table)["index"]) == numbers


def test_nohup_holds(clip: Path) -> None:
    """SIGHUP that is ignored is ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    client = Explaining(lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert run(clip, client, show=0, quiet=True) == 0


@pytest.fixture
def pipe() -> Iterator[tuple[IO[str], IO[str]]]:
    """The ends of a pipe, to read and to write."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as reader, os.fdopen(write_end, "w") as writer:
        yield reader, writer


def test_stderr_that_nobody_reads_does_not_keep_it_running(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: tuple[IO[str], IO[str]]
) -> None:
    """Neither a signal nor the counts depend on it."""
    reader, writer = pipe
    reader.close()
    monkeypatch.setattr(sys, "stderr", writer)
    client = Explaining(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(clip, client, output=tmp_path / "out.mp4") == 143
    assert 5 <= frames_in(tmp_path / "out.mp4") < 200


def test_stdout_that_nobody_reads_ends_it(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: tuple[IO[str], IO[str]]
) -> None:
    """With status 1, and other outputs that have the same frames."""
    reader, writer = pipe
    monkeypatch.setattr(sys, "stdout", writer)
    out, table = tmp_path / "out.mp4", tmp_path / "table"
    client = Explaining(reader.close)
    assert run(clip, client, output=out, parquet=table, as_json=True) == 1
    assert 1 <= frames_in(out) == len(pd.read_parquet(table)) < 200


@pytest.mark.parametrize("full", ["json", "video", "table"])
def test_a_full_disk_of_one_output_leaves_the_others_readable(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: ExitStack,
    full: str,
) -> None:
    """The error is one for people, and names the output."""
    out, table, lines = tmp_path / "out.mp4", tmp_path / "table", tmp_path / "lines"
    if full == "json":
        lines.symlink_to("/dev/full")
    elif full == "video":
        out.symlink_to("/dev/full")
    else:

        def no_room(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(parquet, "RowFile", no_room)
    monkeypatch.setattr(sys, "stdout", files.enter_context(lines.open("w")))
    message = {"json": "--json: stdout", "video": str(out), "table": str(table)}[full]
    with pytest.raises(OutputError, match=f"{message}.*No space left"):
        run(clip, Explaining(), output=out, parquet=table, as_json=True)
    if full != "json":
        assert all(json.loads(line) for line in lines.read_text().splitlines())
    if full != "video":
        assert frames_in(out) >= 1
    if full == "json":
        assert frames_in(out) == len(pd.read_parquet(table))
