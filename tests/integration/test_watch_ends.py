"""``gradcam watch`` survives its servers, and leaves readable outputs however it ends."""

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import cv2
import pandas as pd
import pytest

from support.mjpeg import MjpegCamera, mjpeg_camera
from support.server import RunningServer, quick
from support.videos import write_video
from support.watch_command import TIMEOUT_S, command, counts_of, environment, frames_in, watching

# The tests are about servers that are away, not about slow ones.
MAX_LAG = ("--max-lag", "30")


@pytest.fixture
def camera() -> Iterator[MjpegCamera]:
    """A camera of ten frames per second."""
    with mjpeg_camera(fps=10) as camera:
        yield camera


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    """Kills the servers of a test at its end."""
    with ExitStack() as stack:
        yield stack


def start(servers: ExitStack, *options: str) -> RunningServer:
    """Starts a server that the test may end."""
    server = RunningServer(*quick(), *options)
    servers.callback(server.kill)
    return server


def port_of(server: RunningServer) -> str:
    return server.address.rpartition(":")[2]


def source_of(camera: MjpegCamera) -> str:
    return f"cam=http://127.0.0.1:{camera.port}/"


def frames_of_opencv(path: Path) -> int:
    """Counts the frames that a library that is not ours reads."""
    video, count = cv2.VideoCapture(str(path)), 0
    while video.read()[0]:
        count += 1
    video.release()
    return count


def test_a_server_that_goes_and_comes_back_costs_frames(
    servers: ExitStack, camera: MjpegCamera, tmp_path: Path
) -> None:
    """Killed or drained, and started again on its port; the frames between are counted."""
    out = tmp_path / "out.mp4"
    server = start(servers)
    port = port_of(server.wait_ready())
    with watching(
        *(source_of(camera), "--server", server.address, "-o", out, *MAX_LAG), state=tmp_path
    ) as running:
        for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
            running.wait_for_status("explained", 3)
            server.send_signal(number)
            running.wait_for_status("failed")
            assert server.wait() == status, server.text
            server = start(servers, "--port", port)
        running.wait_for_status("explained", 3)
        assert running.end(signal.SIGTERM) == 0, running.text
    assert "Traceback" not in running.text
    counts = counts_of(running.text, "cam")
    assert counts["explained"] == running.count_of("explained")
    assert counts["failed"] == running.count_of("failed")
    # At the end a frame may be on its way to the slot, in it, and on its way to a call.
    assert 0 <= counts["read"] - counts["explained"] - counts["failed"] - counts["shed"] <= 3
    assert frames_in(out) == len(running.results)


def test_one_of_two_servers_that_goes_costs_nothing(
    server: RunningServer, servers: ExitStack, camera: MjpegCamera, tmp_path: Path
) -> None:
    """Killed or drained, its frame goes to the other one; it is used again when it is back."""
    options = ("--http-port", "0")
    other = start(servers, *options)
    port = port_of(other.wait_ready())
    addresses = f"{server.address},{other.address}"
    with watching(source_of(camera), "--server", addresses, *MAX_LAG, state=tmp_path) as running:
        for number in (signal.SIGKILL, signal.SIGTERM):
            other.wait_ready()
            while other.metric("gradcam_requests_total", rpc="ExplainImage") < 3:
                running.wait_for_status("explained")
            other.send_signal(number)
            running.wait_for_status("explained", 5)
            other.wait()
            if number == signal.SIGKILL:
                other = start(servers, "--port", port, *options)
        assert running.end(signal.SIGINT) == 0, running.text
    assert running.count_of("explained") == len(running.results)
    assert counts_of(running.text, "cam")["failed"] == 0


def test_ctrl_c_leaves_every_output_readable(
    server: RunningServer, camera: MjpegCamera, tmp_path: Path
) -> None:
    """The video, the table and the lines have the frames that are counted, and the view ends."""
    out, table = tmp_path / "out.mp4", tmp_path / "table"
    with watching(
        *(source_of(camera), "--server", server.address, *MAX_LAG),
        *("-o", out, "--parquet", table, "--show", "0"),
        state=tmp_path,
    ) as running:
        running.wait_for(3)
        page = re.search(r"at (http://\S+/)", running.text)
        assert page
        with urlopen(f"{page[1]}streams/0.mjpeg", timeout=TIMEOUT_S) as view:
            running.wait_for(8)
            assert running.end(signal.SIGINT) == 0, running.text
            assert b"image/jpeg" in view.read()
    numbers = [one["number"] for one in running.results]
    assert counts_of(running.text, "cam")["explained"] == len(numbers)
    assert frames_of_opencv(out) == len(numbers)
    assert list(pd.read_parquet(table)["index"]) == numbers


def test_a_second_ctrl_c_quits_at_once(
    server: RunningServer, camera: MjpegCamera, tmp_path: Path
) -> None:
    """Also while nobody takes the lines: the status is 130, and what may be incomplete is said."""
    out, table = tmp_path / "out.mp4", tmp_path / "table"
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write_end, b"\n" * fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ))
    os.set_blocking(write_end, True)
    with subprocess.Popen(
        command(
            *("--json", source_of(camera), "--server", server.address, *MAX_LAG),
            *("-o", out, "--parquet", table, "--quiet"),
        ),
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    ) as process:
        try:
            os.close(write_end)
            assert process.stderr
            deadline = time.monotonic() + TIMEOUT_S
            while not out.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline() == "Stopping; once more quits at once.\n"
            process.send_signal(signal.SIGINT)
            assert process.stderr.read() == (
                f"Quit at once; these may be incomplete: -o {out} (the last second of each video), "
                f"--parquet {table} (the rows since its last shard), --json (its last line).\n"
            )
            assert process.wait(TIMEOUT_S) == 130
        finally:
            process.kill()
            os.close(read_end)


def test_a_reader_that_leaves_ends_the_run(
    server: RunningServer, images: Path, tmp_path: Path
) -> None:
    """As of ``| head -1``: without a traceback, though no further file comes to be written."""
    folder, videos, table = tmp_path / "incoming", tmp_path / "videos", tmp_path / "table"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes((images / "cat.jpg").read_bytes())
    with subprocess.Popen(
        command(
            *("--json", folder, "--server", server.address, "--quiet"),
            *("-o", videos, "--parquet", table),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    ) as process:
        try:
            assert process.stdout
            assert json.loads(process.stdout.readline())["status"] == "explained"
            process.stdout.close()
            assert process.communicate(timeout=TIMEOUT_S)[1] == ""
            assert process.returncode == 1
        finally:
            process.kill()
    assert frames_in(videos / "incoming.mp4") == 1
    assert len(pd.read_parquet(table)) == 1


def test_a_full_disk_is_one_line_of_error(server: RunningServer, tmp_path: Path) -> None:
    """The status is 1, and what the other outputs have is readable."""
    clip = write_video(tmp_path / "clip.mp4", [number / 10 for number in range(12)])
    out, table = tmp_path / "out.mp4", tmp_path / "table"
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command(
                *("--json", clip, "--server", server.address, "--quiet"),
                *("-o", out, "--parquet", table),
            ),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(tmp_path),
            timeout=TIMEOUT_S,
            check=False,
        )
    assert ended.stderr == "Error: --json: stdout cannot be written (No space left on device)\n"
    assert ended.returncode == 1
    assert frames_of_opencv(out) == len(pd.read_parquet(table)) >= 1
