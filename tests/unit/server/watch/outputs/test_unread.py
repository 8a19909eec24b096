"""Streams whose reader is gone."""

import asyncio
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from gradcam_server.watch.outputs.unread import discard, on_reader_gone, write_unless_stuck


@pytest.fixture
def pipe() -> Iterator[tuple[IO[str], IO[str]]]:
    """The ends of a pipe, to read and to write."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as reader, os.fdopen(write_end, "w") as writer:
        yield reader, writer


def test_a_reader_that_leaves_is_noticed_without_a_write(pipe: tuple[IO[str], IO[str]]) -> None:
    """Once, and not before."""
    reader, writer = pipe
    calls: list[str] = []

    async def wait() -> None:
        gone = asyncio.Event()

        def note() -> None:
            calls.append("gone")
            gone.set()

        on_reader_gone(writer, note)
        writer.write("unread\n")
        writer.flush()
        await asyncio.sleep(0.01)
        assert not calls
        reader.close()
        async with asyncio.timeout(60):
            await gone.wait()
        await asyncio.sleep(0.01)

    asyncio.run(wait())
    assert calls == ["gone"]
    discard(writer)


def test_a_named_pipe_that_has_something_to_read_is_not_gone(tmp_path: Path) -> None:
    """It may be open in both directions."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    calls: list[str] = []

    async def wait(file: IO[str]) -> None:
        on_reader_gone(file, lambda: calls.append("gone"))
        file.write("line\n")
        file.flush()
        await asyncio.sleep(0.02)

    with os.fdopen(os.open(path, os.O_RDWR), "w") as file:
        asyncio.run(wait(file))
    assert not calls


@pytest.mark.parametrize("kind", ["file", "device", "no descriptor", "closed"])
def test_only_pipes_have_a_reader(tmp_path: Path, kind: str) -> None:
    """Files, devices and streams in memory are left alone."""

    async def wait(file: IO[str]) -> None:
        on_reader_gone(file, pytest.fail)
        await asyncio.sleep(0.01)

    if kind == "no descriptor":
        asyncio.run(wait(io.StringIO()))
        return
    with Path(os.devnull if kind == "device" else tmp_path / "file").open("w") as file:
        if kind == "closed":
            file.close()
        asyncio.run(wait(file))


def test_what_a_stream_still_holds_is_dropped() -> None:
    """It can be flushed and closed, as Python does when it exits."""
    with Path("/dev/full").open("w") as file:
        file.write("line\n")
        with pytest.raises(OSError, match="No space left"):
            file.flush()
        discard(file)
        file.flush()
    discard(file)
    discard(io.StringIO())


def test_a_reader_that_does_not_read_is_not_waited_for(pipe: tuple[IO[str], IO[str]]) -> None:
    """The line is written if there is room, and else left out."""
    reader, writer = pipe
    write_unless_stuck(writer.fileno(), "first")
    assert reader.readline() == "first\n"
    os.set_blocking(writer.fileno(), False)
    written = 0
    try:
        while True:
            written += os.write(writer.fileno(), bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer.fileno(), True)
    write_unless_stuck(writer.fileno(), "left out")
    assert len(os.read(reader.fileno(), written + 4096)) == written
    reader.close()
    write_unless_stuck(writer.fileno(), "nobody reads it")
    write_unless_stuck(-1, "no such descriptor")
