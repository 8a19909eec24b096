"""Shared fixtures: the bundled photographs."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cores import take_one
from support.exported_model import RUN_FOLDER

IMAGES = Path(__file__).resolve().parent.parent / "examples" / "images"


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder that all workers share, and gives each worker a core."""
    if hasattr(config, "workerinput"):
        take_one(int(config.workerinput["workerid"].removeprefix("gw")))
    else:
        os.environ[RUN_FOLDER] = tempfile.mkdtemp(prefix="gradcam-tests-")


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
