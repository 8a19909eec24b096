"""The output of gradcam explain about the preprocessing."""

import json
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from click.testing import CliRunner, Result
from keras import layers

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import ImageExplanation
from gradcam_server.cli import main
from gradcam_server.cli.explain_output import print_result, result_as_json
from gradcam_server.cli.local import LocalClient
from gradcam_server.config.settings import ServeConfig

SIZE = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of brightness, for pixels from -1 to 1: bright is a diamond, dark a square."""
    path = tmp_path_factory.mktemp("model") / "shapes.keras"
    network = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(1, 1, name="grey"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, "softmax"),
        ]
    )
    grey, _, dense = network.layers
    grey.set_weights([np.full((1, 1, 3, 1), 1 / 3, np.float32), np.zeros(1, np.float32)])
    dense.set_weights([np.array([[-4, 4]], np.float32), np.zeros(2, np.float32)])
    network.save(path)
    path.with_name("names.txt").write_text("square\ndiamond\n")
    return path


@pytest.fixture(scope="module")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dark photograph."""
    path = tmp_path_factory.mktemp("image") / "dark.png"
    cv2.imwrite(str(path), np.full((20, 30, 3), 60, np.uint8))
    return path


def explain(image: Path, model: Path, *options: str) -> Result:
    command = ["explain", str(image), "--model", f"pets={model}"]
    labels = ["--labels", str(model.with_name("names.txt"))]
    return CliRunner().invoke(main, [*command, *labels, *options])


def client_of(model: Path, *preprocessing: str) -> LocalClient:
    labels = (str(model.with_name("names.txt")),)
    return LocalClient(
        ServeConfig(model=(f"pets={model}",), labels=labels, preprocessing=preprocessing)
    )


def test_a_forgotten_preprocessing_is_seen_at_a_glance(model: Path, dark: Path) -> None:
    """The answer names the default preprocessing, and stderr shows the answers of the others."""
    result = explain(dark, model)
    assert result.exit_code == 0, result.output
    header, best, *_ = result.stdout.splitlines()
    assert header == f"{dark} (30 x 20), pets, preprocessing none (by default)"
    assert best.split() == ["100.00%", "1", "diamond"]
    lines = result.stderr.splitlines()
    table = [line.split() for line in lines if line.startswith("  --preprocessing ")]
    assert [line[1] for line in table] == ["none", "tf", "torch", "caffe"]
    assert table[0][2:] == ["100.00%", "1", "diamond"]
    # 60 is -0.529 from -1 to 1: the logits are 8 * 0.529 apart.
    assert table[1][2:] == ["98.57%", "0", "square"]
    assert f"The model's answers for {dark} by each preprocessing:" in lines


@pytest.mark.parametrize("preprocessing", ["none", "tf"])
def test_a_preprocessing_that_is_declared_is_not_doubted(
    model: Path, dark: Path, preprocessing: str
) -> None:
    """A declared preprocessing shows no other answers, even if it is none."""
    with client_of(model, preprocessing) as client:
        assert client.predict_by_likely_preprocessing(dark, "stretch") == []


def test_the_likely_answers_are_for_the_image_as_it_is_resized(model: Path, tmp_path: Path) -> None:
    """With center-crop only the bright middle of the image counts."""
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    cv2.imwrite(str(tmp_path / "wide.png"), image)
    with client_of(model) as client:
        whole = client.predict_by_likely_preprocessing(tmp_path / "wide.png", "stretch")
        middle = client.predict_by_likely_preprocessing(tmp_path / "wide.png", "center-crop")
    assert [one.name for one in whole if one.preprocessing == "tf"] == ["square"]
    (found,) = [one for one in middle if one.preprocessing == "tf"]
    assert (found.index, found.name) == (1, "diamond")
    assert found.probability == pytest.approx(1 / (1 + np.exp(-8)))


def test_an_image_that_cannot_be_read_is_reported_once(model: Path, tmp_path: Path) -> None:
    """The explanation reports the error; no other answers are shown."""
    (tmp_path / "no.png").write_bytes(b"no image")
    with client_of(model) as client:
        for name in ("no.png", "missing.png"):
            assert client.predict_by_likely_preprocessing(tmp_path / name, "stretch") == []


@pytest.mark.parametrize(
    ("preprocessing", "declared", "text"),
    [
        ("caffe", True, ", preprocessing caffe"),
        ("none", False, ", preprocessing none (by default)"),
        ("none", True, ", preprocessing none"),
        ("", False, ""),
    ],
)
def test_every_answer_says_how_pixels_were_scaled(
    preprocessing: str, declared: bool, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The preprocessing is printed, unless an older server does not send it."""
    answer = ImageExplanation.from_response(
        pb.ExplainImageResponse(
            model="pets",
            image_width_px=4,
            image_height_px=3,
            preprocessing=preprocessing,
            preprocessing_declared=declared,
        )
    )
    print_result(Path("a.jpg"), answer, [])
    assert capsys.readouterr().out.splitlines()[0] == f"a.jpg (4 x 3), pets{text}"
    written = json.loads(json.dumps(result_as_json(Path("a.jpg"), answer)))
    assert (written["preprocessing"], written["preprocessing_declared"]) == (
        preprocessing,
        declared,
    )
