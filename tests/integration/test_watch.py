"""``gradcam watch`` as a user runs it: sources to results, through a real server."""

import base64
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gradcam_client import Client, Raw
from support.mjpeg import mjpeg_camera
from support.server import RunningServer
from support.videos import write_video
from support.watch_command import frames_in, watching

# Another process that fills a folder: whole files appear by rename, others by close.
FILL = """
import shutil, sys, time
source, folder, *names = sys.argv[1:]
for number, name in enumerate(names):
    path = f"{folder}/{name}"
    if number % 2:
        shutil.copy(source, path)
    else:
        shutil.copy(source, path + ".part")
        shutil.move(path + ".part", path)
    time.sleep(0.05)
"""


def test_every_frame_of_a_video_is_explained(server: RunningServer, tmp_path: Path) -> None:
    """One line a frame in their order, and a video and a table of as many."""
    clip = write_video(tmp_path / "clip.mp4", [number / 10 for number in range(12)])
    out, table = tmp_path / "out.mp4", tmp_path / "table"
    with watching(
        *(clip, "--server", server.address, "-o", out, "--parquet", table), state=tmp_path
    ) as running:
        assert running.end() == 0, running.text
    assert [one["number"] for one in running.results] == list(range(12))
    assert {one["status"] for one in running.results} == {"explained"}
    assert all(len(one["predictions"]) == 5 for one in running.results)
    assert running.results[3]["time_s"] == pytest.approx(0.3, abs=0.01)
    assert frames_in(out) == 12
    assert list(pd.read_parquet(table)["index"]) == list(range(12))
    assert "12 read, 12 explained" in running.text


def test_a_folder_that_another_process_fills(
    server: RunningServer, client: Client, images: Path, tmp_path: Path
) -> None:
    """Each file is explained once, also after a restart, and SIGTERM is the normal end.

    With --json-maps its line holds the map that the server sends for the file.
    """
    folder, source = tmp_path / "incoming", images / "cat.jpg"
    folder.mkdir()

    def fill(*names: str) -> None:
        subprocess.run([sys.executable, "-c", FILL, source, folder, *names], check=True)

    arguments = (folder, "--server", server.address)
    with watching(*arguments, state=tmp_path / "state") as running:
        fill("a.jpg", "b.jpg", "c.jpg", "d.jpg")
        running.wait_for(4)
        assert running.end(signal.SIGTERM) == 0, running.text
    names = [Path(one["path"]).name for one in running.results]
    assert sorted(names) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    fill("e.jpg")
    with watching(*arguments, "--json-maps", state=tmp_path / "state") as running:
        running.wait_for(1)
        assert running.end(signal.SIGTERM) == 0, running.text
    (line,) = running.results
    assert Path(line["path"]).name == "e.jpg"
    encoded = line["map"]
    assert encoded["dtype"] == "<f4"
    values = np.frombuffer(base64.b64decode(encoded["base64"]), encoded["dtype"])
    sent = client.explain(source, heatmaps=[Raw()]).explanations[0]
    decoded, atol = values.reshape(encoded["shape"]), 1e-4 * sent.raw_max
    np.testing.assert_allclose(decoded, sent.heatmap, rtol=1e-4, atol=atol)
    assert sent.image_extent
    assert line["extent"]["width"] == pytest.approx(sent.image_extent.width, abs=1e-3)


def test_ctrl_c_closes_what_is_not_finished(server: RunningServer, tmp_path: Path) -> None:
    """Of a video file that was not finished the output is readable, and the status says so."""
    clip = write_video(tmp_path / "clip.mp4", [number / 30 for number in range(3000)])
    out = tmp_path / "out.mp4"
    with watching(clip, "--server", server.address, "-o", out, state=tmp_path) as running:
        running.wait_for(3)
        assert running.end(signal.SIGINT) == 130, running.text
    assert 3 <= len(running.results) < 3000
    assert frames_in(out) == len(running.results)


def test_of_cameras_the_newest_frame_counts(server: RunningServer, tmp_path: Path) -> None:
    """Two cameras share a server that explains fewer frames; Ctrl-C is their normal end."""
    with mjpeg_camera(fps=60) as one, mjpeg_camera(fps=60) as two:
        addresses = [f"{name}=http://127.0.0.1:{at.port}/" for name, at in (("a", one), ("b", two))]
        with watching(*addresses, "--server", server.address, state=tmp_path) as running:
            running.wait_for(40)
            assert running.end(signal.SIGINT) == 0, running.text
    for name in ("a", "b"):
        numbers = [one["number"] for one in running.results if one["source"] == name]
        assert numbers == sorted(set(numbers))
        assert len(numbers) >= 10
        assert f"{name}: " in running.text


def test_wrong_options_are_told_before_a_source_is_opened(
    server: RunningServer, tmp_path: Path
) -> None:
    """The first call shows what the server refuses."""
    clip = write_video(tmp_path / "clip.mp4", [0.0, 0.1])
    with watching(
        clip, "--server", server.address, "--class", "no such class", state=tmp_path
    ) as running:
        assert running.end() == 1
    assert "no such class" in running.text
    assert not running.results


def test_without_a_server_the_model_is_in_this_process(tmp_path: Path) -> None:
    """The same results come from --model, here of an export."""
    from support.exported_model import exported_model

    clip = write_video(tmp_path / "clip.mp4", [0.0, 0.1, 0.2])
    model = f"efficientnet-lite0={exported_model()}"
    with watching(clip, "--model", model, state=tmp_path) as running:
        assert running.end() == 0, running.text
    assert [one["status"] for one in running.results] == ["explained"] * 3
