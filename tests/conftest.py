"""Shared fixtures: the bundled photographs."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from support.once import RUN_FOLDER

# How long an example takes depends on the machine.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# PyTorch imports Triton where it is installed, whose library ends a process that has the LLVM of
# TensorFlow or JAX. No test needs it.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]

QUICK_XLA = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
IMAGES = Path(__file__).resolve().parent.parent / "examples" / "images"


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder that all workers share, and lets one thread compute in each process.

    Threads of several processes that wait for each other within a layer, on cores that others
    use, make all of them several times slower. XLA compiles in half the time if it optimises
    little; its answers are the same.
    """
    if not hasattr(config, "workerinput"):
        os.environ[RUN_FOLDER] = tempfile.mkdtemp(prefix="gradcam-tests-")
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ.setdefault("XLA_FLAGS", QUICK_XLA)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes it after the last worker has ended."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(RUN_FOLDER), ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What compilers took on other days must not decide; servers of tests inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def images() -> Path:
    """The folder of the bundled photographs."""
    return IMAGES


@pytest.fixture(scope="session")
def cat_jpeg(images: Path) -> bytes:
    """A photograph of a cat, 451 x 300."""
    return (images / "cat.jpg").read_bytes()
