"""The ``gradcam`` command, as a user types it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.once import made_once
from support.server import GRADCAM, RunningServer
from support.xla_exports import serving_xla

LOCAL = ("--model", "efficientnet-lite0")


def gradcam(
    *arguments: str | Path, cwd: Path | None = None, status: int = 0
) -> subprocess.CompletedProcess[str]:
    command = [GRADCAM, *map(str, arguments)]
    ended = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


@pytest.fixture(scope="module", params=["openvino", "xla"])
def server(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[RunningServer]:
    """A server of an export of either format."""
    if request.param == "openvino":
        yield server
    else:
        with serving_xla() as running:
            yield running


@pytest.fixture(scope="module")
def local(images: Path) -> Path:
    """What the commands say without a server: the layers, and the answers for two photographs.

    A process of its own loads the model for it, once in a run of all tests.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "layers").write_text(gradcam("layers", *LOCAL).stdout)
        photos = [images / "cat.jpg", images / "espresso.jpg"]
        ended = gradcam("explain", *photos, *LOCAL, "--json", "--npz", folder / "numbers")
        (folder / "answers").write_text(ended.stdout)

    return made_once("local", make)


def test_json_and_npz_hold_what_they_promise(images: Path, tmp_path: Path) -> None:
    """In-process: one JSON object for the image, the numbers in a file, the overlay beside."""
    ended = gradcam(
        *("explain", images / "cat.jpg", *LOCAL, "--top-k", "3", "--json"),
        *("--npz", "cat.npz", "-o", "out.png"),
        cwd=tmp_path,
    )
    (line,) = ended.stdout.splitlines()
    answer = json.loads(line)
    assert answer.keys() == {
        *("path", "model", "preprocessing", "preprocessing_declared"),
        *("predictions", "explanations", "stats"),
    }
    assert (answer["preprocessing"], answer["preprocessing_declared"]) == ("lite", True)
    assert answer["path"] == str(images / "cat.jpg")
    assert answer["predictions"][0].keys() == {"index", "name", "probability"}
    assert answer["predictions"][0]["name"] == "Egyptian cat"
    assert [one["index"] for one in answer["explanations"]] == [
        one["index"] for one in answer["predictions"][:3]
    ]
    keys = {"index", "name", "score", "layer", "method", "raw_min", "raw_max", "degenerate"}
    assert keys <= answer["explanations"][0].keys()
    with np.load(tmp_path / "cat.npz") as numbers:
        assert numbers["classes"].tolist() == [one["index"] for one in answer["explanations"]]
        assert numbers["heatmaps"].shape == (3, 7, 7)
        assert numbers["heatmaps"].dtype == np.float32
        assert numbers["logits"].shape == (1000,)
        for one, heatmap in zip(answer["explanations"], numbers["heatmaps"], strict=True):
            assert heatmap.max() == pytest.approx(max(one["raw_max"], 0))
            assert one["score"] == pytest.approx(numbers["logits"][one["index"]])
    written = sorted(path.name for path in tmp_path.glob("out*.png"))
    assert written == ["out-281-tabby.png", "out-282-tiger_cat.png", "out-285-Egyptian_cat.png"]


def test_a_server_and_this_process_answer_alike(
    server: RunningServer, local: Path, images: Path, tmp_path: Path
) -> None:
    """The same command with --server gives the same classes and numbers."""
    photos = [images / "cat.jpg", images / "espresso.jpg"]
    where = ("--server", server.address)
    ended = gradcam("explain", *photos, *where, "--json", "--npz", tmp_path / "numbers")
    lines = zip(
        ended.stdout.splitlines(), (local / "answers").read_text().splitlines(), strict=True
    )
    for ours, theirs in (map(json.loads, pair) for pair in lines):
        assert ours["path"] == theirs["path"]
        assert ours["predictions"][0]["index"] == theirs["predictions"][0]["index"]
    for name in ("cat.npz", "espresso.npz"):
        with np.load(tmp_path / "numbers" / name) as one, np.load(local / "numbers" / name) as two:
            scale = two["heatmaps"].max()
            np.testing.assert_allclose(
                one["heatmaps"], two["heatmaps"], rtol=1e-3, atol=1e-4 * scale
            )


def test_several_images_with_a_bad_one(server: RunningServer, images: Path, tmp_path: Path) -> None:
    """The bad image is reported, the others are written, and the exit status is 1."""
    (tmp_path / "bad.jpg").write_text("no image")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "cat.jpg").write_bytes((images / "espresso.jpg").read_bytes())
    ended = gradcam(
        *("explain", images / "cat.jpg", tmp_path / "bad.jpg", tmp_path / "more" / "cat.jpg"),
        *("--server", server.address, "-o", tmp_path / "overlays"),
        status=1,
    )
    assert f"Error: {tmp_path / 'bad.jpg'}: " in ended.stderr
    assert "not a JPEG, PNG, WebP or BMP" in ended.stderr
    assert "Egyptian cat" in ended.stdout
    assert "espresso" in ended.stdout
    sizes = {}
    for path in (tmp_path / "overlays").iterdir():
        with Image.open(path) as overlay:
            sizes[path.name] = overlay.size
    assert sizes == {"cat.jpg": (451, 300), "cat-2.jpg": (600, 400)}


def test_errors_in_json_have_code_and_message(server: RunningServer, images: Path) -> None:
    """A script that reads JSON sees failures too."""
    ended = gradcam(
        *("explain", images / "cat.jpg", "--class", "nonsense", "--json"),
        *("--server", server.address),
        status=1,
    )
    error = json.loads(ended.stdout)["error"]
    assert error["code"] == "INVALID_ARGUMENT"
    assert "unknown class 'nonsense'" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "1", "--top-k", "2"), "exclude each other"),
        (("-o", "out.gif"), "must end in .jpg, .jpeg, .png"),
        (("--resize", "shrink"), "'stretch', 'center-crop', 'letterbox'"),
    ],
)
def test_wrong_usage_is_refused(images: Path, arguments: tuple[str, ...], message: str) -> None:
    """Exit status 2 and a message, before anything is loaded."""
    ended = gradcam("explain", images / "cat.jpg", *arguments, status=2)
    assert message in ended.stderr


def test_one_output_file_for_several_images_is_refused(images: Path) -> None:
    """No overlay overwrites another."""
    photos = (images / "cat.jpg", images / "espresso.jpg")
    ended = gradcam("explain", *photos, "-o", "out.jpg", status=2)
    assert "one file for 2 images" in ended.stderr


def test_missing_weights_are_explained_in_process_too(images: Path, tmp_path: Path) -> None:
    """The error names the alternatives for a user without network."""
    ended = gradcam("explain", images / "cat.jpg", "--weights", tmp_path / "no.h5", status=1)
    assert "does not exist. Ways out" in ended.stderr


def test_layers_lists_the_layers_without_weights() -> None:
    """The table names the default and the candidates."""
    lines = gradcam("layers").stdout.splitlines()
    assert lines[0].split() == ["LAYER", "TYPE", "OUTPUT", "SHAPE"]
    (default,) = [line for line in lines if line.rstrip().endswith("default")]
    assert default.split()[0] == "conv5_block3_out"
    assert "(None, 7, 7, 2048)" in default
    pool = next(line for line in lines if line.startswith("avg_pool"))
    assert "candidate" not in pool


def test_layers_of_a_server_agree(server: RunningServer, local: Path) -> None:
    """The table is the same from a server."""
    table = gradcam("layers", "--server", server.address).stdout
    assert table == (local / "layers").read_text()


def test_health_is_an_exit_status(server: RunningServer) -> None:
    """The exit status is 0 if the server serves, and 1 if there is none."""
    assert gradcam("health", server.address).stdout == "SERVING\n"
    ended = gradcam("health", "127.0.0.1:9", status=1)
    assert "127.0.0.1:9" in ended.stderr


@pytest.mark.parametrize("command", ["serve", "explain", "layers", "health"])
def test_help_is_there(command: str) -> None:
    """Every command prints its help without TensorFlow."""
    assert f"Usage: gradcam {command}" in gradcam(command, "--help").stdout
