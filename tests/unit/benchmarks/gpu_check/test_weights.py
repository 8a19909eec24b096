"""Weights that were left out of a bundle are drawn from the types in its modules."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray

from gpu_check.weights import PREDICT, draw_weights, predict_module
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Precision
from gradcam_server.engine.engine import Engine
from gradcam_server.exports.manifest import WEIGHTS, read_manifest
from support.tiny_stablehlo import SHAPES, to_module, write_stablehlo

OTHERS = {
    "deep/kernel": (3, 3, 64, 64),
    "depth/depthwise_kernel": (5, 5, 512, 1),
    "dense/kernel": (400, 30),
    "norm/gamma": (5000,),
    "norm/moving_variance": (5000,),
    "norm/beta": (5000,),
}
EXPECTED = {
    "deep/kernel": (0.0, 1 / math.sqrt(3 * 3 * 64)),
    "depth/depthwise_kernel": (0.0, 1 / 5),
    "dense/kernel": (0.0, 1 / 20),
    "norm/gamma": (1.0, 0.1),
    "norm/moving_variance": (1.0, 0.1),
    "norm/beta": (0.0, 0.1),
}


def without_weights(folder: Path, **options: Any) -> Path:
    write_stablehlo(folder, **options)
    (folder / WEIGHTS).unlink()
    return folder


def read(folder: Path) -> dict[str, NDArray[Any]]:
    types = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}
    return {
        name: np.frombuffer(row["data"], types[row["dtype"]]).reshape(row["shape"])
        for name, row in safetensors.deserialize((folder / WEIGHTS).read_bytes())
    }


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    """The weights depend on the seed alone, not on the folder, the process or the time."""
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        folder = without_weights(tmp_path / str(number))
        draw_weights(folder, seed)
        drawn.append((folder / WEIGHTS).read_bytes())
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_the_folder_can_be_served(tmp_path: Path) -> None:
    """The manifest has the new size and hash, and the weights fit the modules."""
    folder = without_weights(tmp_path / "export")
    draw_weights(folder, 0)
    assert read_manifest(folder).sizes == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.suffix != ".json"
    }
    config = ServeConfig(model=(f"tiny={folder}",), cache_dir=str(tmp_path / "cache"))
    source = Engine(config).sources["tiny"]
    assert source.served.input_size == read_manifest(folder).input_size


def test_precisions_have_the_same_weights(tmp_path: Path) -> None:
    """A weight in bfloat16 is that of float32, rounded: so precisions can be compared."""
    exact = without_weights(tmp_path / "float32")
    rough = without_weights(tmp_path / "bfloat16", precision=Precision.BFLOAT16)
    draw_weights(exact, 3)
    draw_weights(rough, 3)
    rounded = read(rough)
    for name, value in read(exact).items():
        expected = value.astype(ml_dtypes.bfloat16)
        assert np.array_equal(rounded[name.replace("float32", "bfloat16")], expected)


def test_no_weight_is_like_another(tmp_path: Path) -> None:
    """Weights of one shape differ, also if only the number behind their names does."""
    shapes = {**SHAPES, "a/kernel": (4, 4), "b/kernel": (4, 4)}
    folder = without_weights(tmp_path / "export", shapes=shapes)
    manifest = folder / "gradcam.json"
    text = manifest.read_text().replace("b/kernel:float32", "a/kernel:float32:2")
    manifest.write_text(text)
    draw_weights(folder, 0)
    weights = read(folder)
    assert not np.array_equal(weights["a/kernel:float32"], weights["a/kernel:float32:2"])


@pytest.mark.parametrize("name", OTHERS)
def test_values_keep_their_size_from_layer_to_layer(name: str, tmp_path: Path) -> None:
    """Kernels are scaled by their inputs; scales are around 1, and offsets around 0."""
    folder = without_weights(tmp_path / "export", sizes=(1,), shapes={**SHAPES, **OTHERS})
    draw_weights(folder, 0)
    values = read(folder)[f"{name}:float32"]
    mean, deviation = EXPECTED[name]
    assert values.mean() == pytest.approx(mean, abs=0.05)
    assert values.std() == pytest.approx(deviation, rel=0.1)


def test_a_constant_is_refused(tmp_path: Path) -> None:
    """What a constant of the model was cannot be known from its type."""
    shapes = {**SHAPES, "constant": (3,)}
    folder = without_weights(tmp_path / "export", sizes=(1,), shapes=shapes)
    with pytest.raises(ValueError, match="constant:float32 is a constant of the model"):
        draw_weights(folder, 0)


def test_what_predicts_alone_has_its_weights(tmp_path: Path) -> None:
    """Modules beside those of the manifest may need a weight in a precision of their own."""
    folder = without_weights(tmp_path / "export")
    kernel = np.zeros((4, 6), ml_dtypes.bfloat16)
    module = to_module(lambda *inputs: (inputs[3],), 2, {"kernel": kernel})
    (folder / predict_module(2)).write_bytes(module)
    (folder / PREDICT).write_text(json.dumps({"weights": ["logits/kernel:bfloat16"]}))
    draw_weights(folder, 0)
    weights = read(folder)
    expected = weights["logits/kernel:float32"].astype(ml_dtypes.bfloat16)
    assert np.array_equal(weights["logits/kernel:bfloat16"], expected)
    assert read_manifest(folder).sha256
