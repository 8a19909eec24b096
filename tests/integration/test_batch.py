"""``gradcam batch`` as a user runs it: the same rows by every engine, whatever is killed."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from gradcam_client import Client, ImageExplanation, UnavailableError
from gradcam_server.batch.schema import unpack
from support.exported_model import exported_model
from support.server import GRADCAM, TRACED, RunningServer, quick

COUNT = 120
BROKEN = {"broken/cut.jpg": 3000, "broken/empty.jpg": 0, "broken/text.png": None}
TOTAL = COUNT + len(BROKEN)
SHARDS = ("--shard-size", "16")


@pytest.fixture(scope="module")
def photos(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of the bundled photographs, and three files that are not images."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    originals = [cv2.imread(str(path)) for path in sorted(images.glob("*.jpg"))]
    for number in range(COUNT):
        image = originals[number % len(originals)]
        assert image is not None
        top, left = (int(generator.integers(0, side // 3)) for side in image.shape[:2])
        cv2.imwrite(str(folder / f"{number:03d}.jpg"), image[top:, left:])
    (folder / "broken").mkdir()
    whole = (folder / "000.jpg").read_bytes()
    for name, length in BROKEN.items():
        (folder / name).write_bytes(b"no image" if length is None else whole[:length])
    return folder


def batch(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GRADCAM, "batch", *map(str, arguments)], capture_output=True, text=True, timeout=240
    )


def rows(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output).set_index("id", verify_integrity=True).sort_index()


def assert_same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """The same images, classes and errors, and maps equal to float16's rounding."""
    assert list(left.index) == list(right.index)
    assert left.columns.equals(right.columns)
    if "index" in left:
        pd.testing.assert_series_equal(left["index"], right["index"])
    for name in ("status", "width", "height", "target", "target_name", "layer", "method"):
        pd.testing.assert_series_equal(left[name], right[name])
    for one, other in zip(left.to_dict("records"), right.to_dict("records"), strict=True):
        if one["status"] == "ok":
            assert one["class_index"][0] == other["class_index"][0]
            np.testing.assert_allclose(one["probability"], other["probability"], atol=1e-4)
            top = unpack(one).max()
            np.testing.assert_allclose(unpack(one), unpack(other), rtol=0, atol=top * 2e-3)


@pytest.fixture(scope="module")
def local(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a job that was killed twice: before its first shard, and after it."""
    output = tmp_path_factory.mktemp("jobs") / "out"
    command = [GRADCAM, "batch", str(photos), str(output), *quick(), *SHARDS, "--overlays"]
    for has_come in (lambda: (output / "_manifest.json").exists(), lambda: any(shards(output))):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            wait_until(has_come, process)
            process.kill()
    assert 0 < len(shards(output)) < -(-TOTAL // 16)
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert re.search(r"this run explained (\d+)", done.stdout)
    return output


def shards(output: Path) -> list[Path]:
    return sorted(output.glob("*.parquet"))


def wait_until(has_come, process: subprocess.Popen[bytes]) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 120
    while not has_come():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_and_run_again_it_has_every_image_once(local: Path) -> None:
    """After kill -9 the same command finishes the job, and no temporary file is left."""
    table = pd.read_parquet(local)
    assert sorted(table["index"]) == list(range(TOTAL))
    assert table["id"].is_unique
    assert not list(local.glob(".*.tmp"))
    assert [path.name for path in shards(local)] == [
        f"part-{number:05d}-of-00008.parquet" for number in range(8)
    ]


def test_images_that_cannot_be_read_are_rows(local: Path) -> None:
    """Their rows hold the error; the other images are explained."""
    table = rows(local)
    assert set(table.index[table["status"] == "error"]) == set(BROKEN)
    assert "truncated or corrupt" in table["error"]["broken/cut.jpg"]
    assert "empty" in table["error"]["broken/empty.jpg"]
    assert "not a JPEG" in table["error"]["broken/text.png"]


def test_a_traced_model_gives_the_rows_of_its_export(
    local: Path, photos: Path, tmp_path: Path
) -> None:
    """TensorFlow's executor in one job, OpenVINO in the other; errors are rows in both."""
    few = tmp_path / "few"
    few.mkdir()
    for name in ("000.jpg", "001.jpg", "002.jpg", *BROKEN):
        (few / name).parent.mkdir(exist_ok=True)
        (few / name).write_bytes((photos / name).read_bytes())
    done = batch(few, tmp_path / "out", *TRACED)
    assert done.returncode == 0, done.stderr
    ours = rows(tmp_path / "out")
    assert len(ours) == 3 + len(BROKEN)
    assert_same(ours.drop(columns="index"), rows(local).loc[ours.index].drop(columns="index"))


def test_rows_are_a_servers_answers(local: Path, photos: Path, client: Client) -> None:
    """An image gets the same classes, score and map from a job and from a server."""
    for name, row in rows(local).iloc[:3].iterrows():
        answer: ImageExplanation = client.explain(photos / str(name), model="efficientnet-lite0")
        (explanation,) = answer.explanations
        assert list(row["class_index"]) == [one.index for one in answer.predictions]
        assert row["target_name"] == explanation.name
        assert row["score"] == pytest.approx(explanation.score, rel=1e-3)
        top = explanation.heatmap.max()
        np.testing.assert_allclose(unpack(row), explanation.heatmap, rtol=0, atol=top * 2e-3)


def test_overlays_lie_beside(local: Path) -> None:
    """One JPEG of the image's size for each row that is not an error."""
    table = rows(local)
    row = table.loc["000.jpg"]
    overlay = cv2.imread(str(local / row["overlay"]))
    assert overlay is not None
    assert overlay.shape == (row["height"], row["width"], 3)
    assert len(list((local / "_overlays").rglob("*.jpg"))) == COUNT
    assert pd.isna(table.loc["broken/cut.jpg"]["overlay"])


def test_too_many_errors_end_it(photos: Path, tmp_path: Path) -> None:
    """The exit status is 1, and the error names what failed."""
    done = batch(photos / "broken", tmp_path / "out", *quick(), "--errors-max", 1)
    assert done.returncode == 1
    assert "more than 1 images failed" in done.stderr
    assert "cut.jpg" in done.stderr
    assert not shards(tmp_path / "out")


def test_a_gallery_is_made_of_it(local: Path, tmp_path: Path) -> None:
    """The gallery is one file; an image of several sections is in it once, beside its map."""
    page = tmp_path / "page.html"
    done = subprocess.run([GRADCAM, "gallery", local, "-o", page], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.count("<figure") == 5 * 12
    scale, shown = 1, text.count(' data-map="')
    assert text.count("data:image/jpeg;base64,") == scale + 2 * shown
    assert 12 <= shown < 5 * 12


def test_servers_give_the_same_rows_though_one_dies(
    server: RunningServer, local: Path, photos: Path, tmp_path: Path
) -> None:
    """Unanswered images go to the other server; no model is loaded here."""
    second = RunningServer(*quick())
    try:
        second.wait_ready()
        both = f"{server.address},{second.address}"
        output = tmp_path / "out"
        options = ("--model", "efficientnet-lite0", *SHARDS, "--server", both)
        with subprocess.Popen(
            [GRADCAM, "batch", str(photos), str(output), *options],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            wait_until(lambda: any(shards(output)) or process.poll() == 0, process)  # type: ignore[arg-type]
            second.send_signal(signal.SIGKILL)
            _, imported = process.communicate(timeout=120)
        assert process.returncode == 0, imported
        assert "tensorflow" not in imported
        assert_same(rows(local), rows(output))
    finally:
        second.kill()


def test_without_any_server_it_says_so(photos: Path, tmp_path: Path) -> None:
    """The job ends without error rows."""
    done = batch(photos, tmp_path / "out", "--server", "localhost:1")
    assert done.returncode == 1
    assert "no server answers" in done.stderr
    with pytest.raises(UnavailableError), Client("localhost:1") as nobody:
        nobody.get_model()


# Kills the first engine that it sees as soon as there are rows of it.
RAY = """
import os, signal, sys
from pathlib import Path
import psutil
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.sources.opening import open_source
from gradcam_server.batch.job import Job, run
from gradcam_server.batch.model import identity
from gradcam_server.batch.ray_data import RayStage
from gradcam_server.config.settings import ServeConfig

class Killer:
    killed = False

    def begin(self, total, finished, errors):
        pass

    def advance(self, row):
        if not self.killed:
            (engine,) = [
                one for one in psutil.Process().children(recursive=True)
                if "EngineActor" in " ".join(one.cmdline())
            ]
            engine.kill()
            self.killed = True

if __name__ == "__main__":
    config = ServeConfig(model=(sys.argv[3],), max_targets=1)
    source = open_source(sys.argv[1])
    job = Job(source, sys.argv[1], Path(sys.argv[2]), model=identity(config), shard_size=16)
    print(run(job, lambda: RayStage(config, ExplainOptions(), actors=1), Killer()))
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_same_rows_though_an_engine_is_killed(
    local: Path, photos: Path, tmp_path: Path
) -> None:
    """A dead actor is restarted, and its images are explained again."""
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", RAY, photos, output, f"efficientnet-lite0={exported_model()}"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert "done=123" in done.stdout
    assert_same(rows(local), rows(output))
