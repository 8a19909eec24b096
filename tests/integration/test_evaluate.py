"""``gradcam evaluate`` and ``gradcam compare``, on photographs and trained weights."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradcam_client import ImageArray
from gradcam_server.cli.local import LocalClient
from gradcam_server.cli.pictures import load_image, load_mask
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Compiler
from gradcam_server.methods.faithfulness import auc, deletion_images, insertion_images
from support.server import GRADCAM, RunningServer

MODEL = "efficientnet-lite0"
METRICS = {"deletion_auc", "insertion_auc", "average_drop_percent", "increase_percent"}
EGYPTIAN_CAT = 285


def gradcam(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [GRADCAM, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


@pytest.fixture(scope="module")
def local() -> Iterator[LocalClient]:
    """The trained model in this process."""
    config = ServeConfig(model=(MODEL,), batch_sizes=(1, 4), compiler=Compiler.TENSORFLOW)
    with LocalClient(config) as client:
        yield client


@pytest.fixture(scope="module")
def masks(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mask of the cat's face, and none for the others."""
    folder = tmp_path_factory.mktemp("masks")
    with Image.open(images / "cat.jpg") as photo:
        face = np.zeros((photo.height, photo.width), np.uint8)
    face[20:280, 60:360] = 255
    Image.fromarray(face).save(folder / "cat.png")
    return folder


@pytest.fixture(scope="module")
def remote(
    server: RunningServer, images: Path, masks: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The report by a server on two photographs and a file that is not an image, and its plot."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "bad.jpg").write_text("no image")
    ended = gradcam(
        *("evaluate", images / "cat.jpg", folder / "bad.jpg", images / "espresso.jpg"),
        *("--server", server.address, "--method", "gradcam", "--steps", "10"),
        *("--masks", masks, "-o", folder / "out" / "report.json", "--plot", folder / "plot.png"),
        status=1,
    )
    report = json.loads((folder / "out" / "report.json").read_text())
    return {"report": report, "ended": ended, "folder": folder}


def areas(
    client: LocalClient, image: np.ndarray, heatmap: np.ndarray, index: int
) -> tuple[float, float]:
    curves = []
    for images in (deletion_images, insertion_images):
        outcomes = client.explain_stream(images(image, heatmap), top_k=0, logits=True)
        logits = np.array([outcome.unwrap().logits for outcome in outcomes], np.float32)
        exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
        curves.append(auc((exponential / exponential.sum(axis=1, keepdims=True))[:, index]))
    return curves[0], curves[1]


def test_grad_cam_is_more_faithful_than_chance(local: LocalClient, images: Path) -> None:
    """Deletion and insertion by Grad-CAM are better than by random maps of its size."""
    image = load_image(images / "cat.jpg", 512)
    (outcome,) = local.explain_stream([image], classes=[EGYPTIAN_CAT], heatmaps=[ImageArray()])
    heatmap = outcome.unwrap().explanations[0].heatmaps[0].array
    deletion, insertion = areas(local, image, heatmap, EGYPTIAN_CAT)
    random = np.random.default_rng(0)
    height, width = heatmap.shape
    blocks = [
        np.asarray(
            Image.fromarray(random.random((7, 7), np.float32)).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for _ in range(3)
    ]
    by_chance = np.mean([areas(local, image, block, EGYPTIAN_CAT) for block in blocks], axis=0)
    assert insertion > by_chance[1] + 0.1
    assert deletion < by_chance[0]


def test_the_report_has_what_it_promises(remote: dict[str, Any], images: Path) -> None:
    """It has values and curves for each image, means for each method, and the protocol."""
    report = remote["report"]
    assert report.keys() == {"model", "protocol", "methods", "images"}
    assert report["model"] == MODEL
    assert report["protocol"] == {
        "steps": 10,
        "deletion_baseline": "mean",
        "insertion_baseline": "blur",
        "max_side_px": 512,
    }
    cat, _, espresso = report["images"]
    assert cat["path"] == str(images / "cat.jpg")
    assert (cat["width"], cat["height"]) == (451, 300)
    assert cat["class"]["name"] == "Egyptian cat"
    values = cat["methods"]["gradcam"]
    assert values.keys() >= METRICS | {"layer", "degenerate", "explain_s", "evaluate_s"}
    for curve in ("deletion", "insertion"):
        assert len(values[curve]) == 11
        assert 0 < values[f"{curve}_auc"] < 1
    assert values["deletion"][0] == pytest.approx(cat["class"]["probability"])
    assert values["insertion"][-1] == pytest.approx(values["deletion"][0], rel=1e-3)
    summary = report["methods"]["gradcam"]
    assert summary["images"] == 2
    both = [one["methods"]["gradcam"]["insertion_auc"] for one in (cat, espresso)]
    assert summary["insertion_auc"] == {
        "mean": pytest.approx(np.mean(both)),
        "std": pytest.approx(np.std(both)),
    }


def test_smoothgrad_stands_beside_its_method(images: Path, tmp_path: Path) -> None:
    """``--smooth`` adds a row for each one-pass method, with other maps."""
    report = tmp_path / "report.json"
    gradcam(
        *("evaluate", images / "cat.jpg", "--model", MODEL, "--steps", "5"),
        *("--method", "gradcam", "--smooth", "4", "-o", report),
    )
    methods = json.loads(report.read_text())["methods"]
    assert methods.keys() == {"gradcam", "smooth-gradcam"}
    plain, smooth = (methods[one]["insertion_auc"]["mean"] for one in methods)
    assert plain != smooth


def test_masks_count_where_there_are_some(remote: dict[str, Any], masks: Path) -> None:
    """The hottest pixel is on the cat's face; an image without a mask has no such values."""
    cat, _, espresso = remote["report"]["images"]
    assert cat["mask"] == str(masks / "cat.png")
    assert cat["methods"]["gradcam"]["pointing_percent"] == 100
    assert 0.6 < cat["methods"]["gradcam"]["energy_inside"] < 1
    assert espresso["mask"] is None
    assert not espresso["methods"]["gradcam"].keys() & {"pointing_percent", "energy_inside"}
    assert remote["report"]["methods"]["gradcam"]["pointing_percent"]["mean"] == 100


def test_a_bad_image_is_reported_and_the_others_go_on(remote: dict[str, Any]) -> None:
    """The image is named on stderr and in the report; the table has the other images."""
    ended, bad = remote["ended"], remote["report"]["images"][1]
    assert bad["error"]["code"] == "OSError"
    assert f"Error: {bad['path']}: " in ended.stderr
    heading, row, *_ = ended.stdout.splitlines()
    assert heading.split()[:3] == ["METHOD", "IMAGES", "DELETION"]
    assert row.split()[:2] == ["gradcam", "2"]
    assert "±" in row


def test_the_plot_is_a_picture(remote: dict[str, Any]) -> None:
    """Two panels side by side, not blank."""
    with Image.open(remote["folder"] / "plot.png") as plot:
        assert plot.format == "PNG"
        assert 1200 < plot.width < 3000
        assert 500 < plot.height < plot.width
        assert len(set(plot.convert("L").resize((200, 80)).tobytes())) > 20


def test_this_process_measures_what_a_server_does(
    remote: dict[str, Any], images: Path, masks: Path
) -> None:
    """The same command without --server gives the same numbers."""
    ended = gradcam(
        *("evaluate", images / "cat.jpg", images / "espresso.jpg", "--model", MODEL),
        *("--method", "gradcam", "--steps", "10", "--masks", masks, "--json"),
    )
    report = json.loads(ended.stdout)
    there = [one for one in remote["report"]["images"] if "methods" in one]
    for one, other in zip(report["images"], there, strict=True):
        assert one["class"]["index"] == other["class"]["index"]
        for metric in METRICS | {"deletion", "insertion"}:
            np.testing.assert_allclose(
                one["methods"]["gradcam"][metric],
                other["methods"]["gradcam"][metric],
                rtol=2e-3,
                atol=2e-3,
            )


def test_a_class_that_there_is_not_is_reported(server: RunningServer, images: Path) -> None:
    """The server's error is reported for the image and method; there are no means."""
    ended = gradcam(
        *("evaluate", images / "cat.jpg", "--server", server.address),
        *("--class", "nonsense", "--method", "gradcam", "--json"),
        status=1,
    )
    assert "cat.jpg: gradcam: " in ended.stderr
    report = json.loads(ended.stdout)
    assert report["methods"] == {}
    assert report["images"][0]["methods"]["gradcam"]["error"]["code"] == "INVALID_ARGUMENT"


def test_compare_draws_classes_by_layers(images: Path, tmp_path: Path) -> None:
    """In-process: a row for each class and a column for each layer, beside the original."""
    sizes = []
    for layers in (("top_activation",), ("block6d_add", "top_activation")):
        path = tmp_path / "pictures" / f"{len(layers)}.png"
        options: list[str | Path] = [part for layer in layers for part in ("--layer", layer)]
        options += ["--class", "tabby", "--class", "black-and-tan coonhound", "-o", path]
        gradcam("compare", images / "cat.jpg", "--model", MODEL, "--method", "gradcam", *options)
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            sizes.append(picture.size)
            assert len(set(picture.convert("L").resize((200, 200)).tobytes())) > 100
    (narrow, low), (wide, high) = sizes
    assert 900 < narrow < 2000
    assert 400 < wide - narrow < 700
    assert high == pytest.approx(low, abs=2)


def test_compare_asks_a_server(server: RunningServer, images: Path, tmp_path: Path) -> None:
    """The K best classes by one method; the command says where the picture is."""
    path = tmp_path / "espresso.jpg"
    ended = gradcam(
        *("compare", images / "espresso.jpg", "--server", server.address),
        *("--top-k", "2", "--method", "gradcam", "-o", path),
    )
    assert ended.stdout == f"wrote {path}\n"
    with Image.open(path) as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "1", "--top-k", "2", "-o", "out.png"), "exclude each other"),
        (("-o", "out.gif"), "must end in .png, .jpg, .pdf or .svg"),
        ((), "Missing option '-o'"),
        (("-o", "out.png", "--method", "nonsense"), "'gradcam'"),
    ],
)
def test_wrong_usage_of_compare_is_refused(
    images: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Exit status 2 and a message, before anything is loaded."""
    assert message in gradcam("compare", images / "cat.jpg", *arguments, status=2).stderr


def test_a_photograph_is_read_upright_and_small(tmp_path: Path) -> None:
    """EXIF orientation is applied, the longest side is limited, and 16 bits keep the high byte."""
    photo = Image.new("RGB", (400, 200), (200, 10, 10))
    exif = photo.getexif()
    exif[0x0112] = 6  # turn right
    photo.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg", 100).shape == (100, 50, 3)
    Image.fromarray(np.full((4, 6), 0x80FF, np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png", 100), 0x80)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_mask_is_what_is_not_zero(mode: str, tmp_path: Path) -> None:
    """Black and white, grey, indexed and coloured masks give the same object."""
    grey = np.zeros((20, 30), np.uint8)
    grey[5:10, 20:] = 255 if mode == "1" else 1
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    mask = Image.fromarray(grey)
    if mode == "P":
        mask.putpalette([0, 0, 0, 0, 0, 0])  # only the index counts
    else:
        mask = mask.convert(mode)
    mask.save(tmp_path / "mask.png")
    inside = load_mask(tmp_path / "mask.png", tmp_path / "photo.png", (10, 15, 3))
    assert inside.shape == (10, 15)
    assert inside.sum() == grey.astype(bool)[1::2, 1::2].sum()


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    """A mask of another size would mark another part of the image."""
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    Image.new("L", (20, 30)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"is \(20, 30\) \(width, height\), not \(30, 20\)"):
        load_mask(tmp_path / "mask.png", tmp_path / "photo.png", (20, 30, 3))


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_help_is_there(command: str) -> None:
    """Every command explains itself, without TensorFlow."""
    assert f"Usage: gradcam {command}" in gradcam(command, "--help").stdout
