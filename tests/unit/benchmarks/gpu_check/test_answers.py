"""The check of answers finds right answers right, and wrong answers wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from gpu_check import answers
from gpu_check.answers import References, check_graph, compare
from gpu_check.weights import draw_weights
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Precision
from gradcam_server.exports.manifest import WEIGHTS, read_manifest
from gradcam_server.exports.stablehlo_graphs import StableHloGraphs
from support.tiny_stablehlo import CLASSES, SIZE, TARGETS, write_stablehlo

IMAGES = 3
Arrays = dict[str, Any]


def explain(folder: Path) -> Arrays:
    """Computes the answers of the tiny export by NumPy, in float64."""
    stored = safetensors.numpy.load((folder / WEIGHTS).read_bytes())
    kernel, bias, head = (
        stored[f"{name}:float32"].astype(np.float64)
        for name in ("conv/kernel", "conv/bias", "logits/kernel")
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8)
    activation = np.maximum(images.astype(np.float64) @ kernel[0, 0] + bias, 0)
    logits = activation.mean(axis=(1, 2)) @ head
    classes = np.argsort(-logits)[:, :TARGETS].astype(np.int32)
    maps = np.einsum("bhwk,btk->bthw", activation, head.T[classes]) / SIZE**2
    return {"images": images, "classes": classes, "logits": logits, "maps_0": maps}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of tiny exports, of which the two of ResNet50 lack their weights."""
    write_stablehlo(tmp_path / "lite0")
    draw_weights(tmp_path / "lite0", 1)
    np.savez(tmp_path / "lite0_reference.npz", **explain(tmp_path / "lite0"))
    for precision in (Precision.FLOAT32, Precision.BFLOAT16):
        write_stablehlo(tmp_path / f"resnet50-{precision}", precision=precision)
        (tmp_path / f"resnet50-{precision}" / WEIGHTS).unlink()
    (tmp_path / "bundle.json").write_text(json.dumps({"seed": 0}))
    return tmp_path


def check(bundle: Path, seconds: float = 60) -> Any:
    out = bundle / "out.json"
    answers.main(
        [
            *("--bundle", str(bundle), "--platform", "cpu"),
            *("--seconds", str(seconds), "--out", str(out)),
        ]
    )
    return json.loads(out.read_text())


def check_lite0(bundle: Path, precision: str = "float32") -> list[dict[str, Any]]:
    manifest = read_manifest(bundle / "lite0")
    config = ServeConfig(device=("CPU:0",), cache_dir=str(bundle / "cache"))
    graphs = StableHloGraphs(bundle / "lite0", manifest, config)
    references = References(bundle / "lite0_reference.npz")
    return check_graph(graphs, manifest, 0, references, precision)


def change(bundle: Path, edit: Callable[[Arrays], object]) -> None:
    path = bundle / "lite0_reference.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    edit(arrays)
    np.savez(path, **arrays)


def test_right_answers_are_ok(bundle: Path) -> None:
    """Each batch size of each graph has a row, bfloat16 has one, and TF32 is left out by a note."""
    found = check(bundle)
    rows = found["rows"]
    assert [(row["precision"], row["batch_size"]) for row in rows] == [
        *(("float32", 1), ("float32", 2), ("bfloat16", 1))
    ]
    for row in rows:
        assert row["ok"], row
        assert row["graph"] == "gradcam@relu"
    assert rows[2]["map_difference"] > 1e-4 > rows[0]["map_difference"]  # it is computed in 16 bits
    assert any("TF32" in note for note in found["notes"])


@pytest.mark.parametrize("image", range(IMAGES))
def test_a_wrong_map_is_not_ok(image: int, bundle: Path) -> None:
    """One value of one map of any image, wrong by 0.1 % of its map, is found at each size."""

    def edit(arrays: Arrays) -> None:
        one = arrays["maps_0"][image, 2]
        one[4, 4] += 1e-3 * np.abs(one).max()

    change(bundle, edit)
    assert [row["ok"] for row in check_lite0(bundle)] == [False, False]


def test_another_top_class_is_not_ok(bundle: Path) -> None:
    """Maps may be right while the prediction is wrong."""
    change(bundle, lambda arrays: arrays["logits"].__imul__(-1))
    for row in check_lite0(bundle):
        assert not row["ok"]
        assert not row["same_top_class"]


def test_tf32_is_of_its_own_rows(bundle: Path) -> None:
    """Modules are loaded for rounded products in that context, and for true float32 after it."""
    config: Any = jax.config  # its attributes are made at run time
    with answers.products_in("tf32"):
        assert config.jax_default_matmul_precision == "tensorfloat32"
        rows = check_lite0(bundle, "tf32")
    assert config.jax_default_matmul_precision is None
    assert [(row["precision"], row["ok"]) for row in rows] == [("tf32", True)] * 2


def test_a_failure_is_a_row(bundle: Path) -> None:
    """What cannot be compared has a row with the error, and the other rows follow."""
    change(bundle, lambda arrays: arrays.pop("maps_0"))
    first, last = check(bundle)["rows"]
    assert "maps_0" in first["error"]
    assert not first["ok"]
    assert last["precision"] == "bfloat16"


def test_what_has_no_time_is_noted(bundle: Path) -> None:
    """Nothing is compared when the time is over, and the notes say so."""
    found = check(bundle, seconds=0)
    assert found["rows"] == []
    assert "no time was left for gradcam@relu in float32" in found["notes"]
    assert "no time was left for bfloat16" in found["notes"]


def made(random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return random.normal(size=(2, CLASSES)), random.normal(size=(2, 3, 4, 4))


WRONG: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "another sign": np.negative,
    "zeros": np.zeros_like,
    "not a number": lambda maps: np.where(maps == maps.max(), np.nan, maps),
    "infinite": lambda maps: np.where(maps == maps.max(), np.inf, maps),
    "another image's": lambda maps: maps[::-1],
    "mirrored": lambda maps: maps[..., ::-1],
}


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_no_precision_excuses_another_map(
    precision: str, spoil: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    """Maps that are not the true maps are never ok; the true maps always are."""
    logits, maps = made(np.random.default_rng(0))
    assert compare(precision, logits, maps, logits, maps)["ok"]
    assert not compare(precision, logits, spoil(maps), logits, maps)["ok"]


def test_rounding_is_judged_by_precision() -> None:
    """A correlation of 0.9995 is right for TF32, and not for float32; 0.99 for bfloat16 alone."""
    random = np.random.default_rng(0)
    logits, maps = made(random)
    for noise, right in ((0.015, {"tf32", "bfloat16"}), (0.1, {"bfloat16"})):
        rounded = maps + noise * random.normal(size=maps.shape)
        for precision in ("float32", "tf32", "bfloat16"):
            found = compare(precision, logits, rounded, logits, maps)
            assert found["ok"] == (precision in right), (precision, found)


def test_an_empty_map_is_compared_with_an_empty_map() -> None:
    """A map of zeros has no correlation: it is right if the true map is zero, too."""
    logits, maps = made(np.random.default_rng(0))
    maps[0, 1] = 0
    assert compare("tf32", logits, maps, logits, maps)["ok"]
    spoilt = maps.copy()
    spoilt[0, 1, 0, 0] = 1
    assert not compare("tf32", logits, spoilt, logits, maps)["ok"]
