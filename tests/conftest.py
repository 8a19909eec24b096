"""Shared fixtures: the bundled photographs."""

from pathlib import Path

import pytest

IMAGES = Path(__file__).resolve().parent.parent / "examples" / "images"


@pytest.fixture(scope="session")
def images() -> Path:
    """The folder of the bundled photographs."""
    return IMAGES


@pytest.fixture(scope="session")
def cat_jpeg(images: Path) -> bytes:
    """A photograph of a cat, 451 x 300."""
    return (images / "cat.jpg").read_bytes()
