"""Exports for XLA, and servers of them in whose processes TensorFlow cannot be imported."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import many_pass_keys
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.options import GraphFormat
from gradcam_server.domain.registry import ONE_PASS_METHODS
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.engine.engine import Engine
from gradcam_server.engine.sources.model import ModelSource
from gradcam_server.exports.writer import write
from gradcam_server.graphs.compilers.pjrt_devices import set_up_devices
from support.once import RUN_FOLDER, made_once
from support.server import GRADCAM, RunningServer, serving
from support.small_model import build_network

LITE = "efficientnet-lite0"
LITE_WARM = ("layercam", "gradcam@block6d_add", "hirescam:probability@block6d_add")
"""The graphs of the trained model's export, beside Grad-CAM at the default layer."""

NO_TENSORFLOW = str(Path(__file__).with_name("no_tensorflow"))
"""A folder for PYTHONPATH: a process with it cannot import TensorFlow or Keras."""

TARGETS = 2
SMALL_LAYERS = ("conv3", "block")
DEFAULT = GraphKey("small", SMALL_LAYERS[1:], Method.GRAD_CAM, ScoreType.LOGIT, TARGETS)
METHOD_KEYS = [
    replace(DEFAULT, layers=SMALL_LAYERS, method=method, score_type=score, max_targets=1)
    for method, score in product(ONE_PASS_METHODS, ScoreType)
]
"""Each method of one pass with each score, at two layers in one graph."""
MANY_PASS_KEYS = [
    key for key in many_pass_keys([DEFAULT], DEFAULT.layers[0]) if key.max_targets == TARGETS
]
"""What SmoothGrad, Score-CAM and Integrated Gradients need."""

_IMAGES = Path(__file__).resolve().parents[2] / "examples" / "images"
_SAMPLES = 60  # so few are not cropped to more, and a third is compared


def cache_folder() -> Path:
    """Returns the ``--cache-dir`` of all servers of these exports: a module is compiled once."""
    return Path(os.environ[RUN_FOLDER]) / "xla-cache"


@cache
def exported_lite() -> Path:
    """Returns the folder of an export of the trained model, for batches of one image."""
    return made_once(f"{LITE}-xla", _export_lite)


def _export_lite(folder: Path) -> None:
    samples = folder.with_suffix(".samples")
    samples.mkdir()
    for number in range(_SAMPLES):
        photo = ("cat", "espresso", "astronaut")[number // 3 % 3]
        shutil.copy(_IMAGES / f"{photo}.jpg", samples / f"{number:02}.jpg")
    options = ["--for", "xla", "--model", LITE, "--batch-sizes", "1", "--images", str(samples)]
    done = subprocess.run(
        [GRADCAM, "export", *options, *(f"--warm={one}" for one in LITE_WARM), "-o", str(folder)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )
    assert done.returncode == 0, done.stderr


@cache
def exported_small() -> Path:
    """Returns a folder with the small network, ``small.keras``, and its export, ``export``."""
    return made_once("small-xla", _export_small)


def load_small(folder: Path) -> ModelSource:
    """Loads the small network of a folder."""
    config = ServeConfig(
        model=(f"small={folder / 'small.keras'}",), preprocessing=("lite",), max_targets=TARGETS
    )
    source = Engine(config).sources["small"]
    assert isinstance(source, ModelSource)
    return source


def _export_small(folder: Path) -> None:
    folder.mkdir()
    build_network().save(folder / "small.keras")
    source = load_small(folder)
    keys = [DEFAULT, *METHOD_KEYS, *MANY_PASS_KEYS]
    set_up_devices(cache=cache_folder() / "xla")
    write(
        *(source.loaded, source.served, keys, (2,), folder / "export"),
        graph_format=GraphFormat.STABLEHLO,
    )


@contextmanager
def serving_xla(*options: str) -> Iterator[RunningServer]:
    """Runs a warm server of the trained model's export for XLA, without TensorFlow.

    Args:
        *options: Further options. Batches of four run as four batches of one image.
    """
    with serving(
        *("--model", f"{LITE}={exported_lite()}", "--batch-sizes", "1,4"),
        *("--cache-dir", str(cache_folder()), *options),
        PYTHONPATH=NO_TENSORFLOW,
    ) as running:
        yield running
