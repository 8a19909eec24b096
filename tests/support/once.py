"""Folders that take long to make, shared by all processes of a test run."""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

RUN_FOLDER = "GRADCAM_TEST_RUN"
"""Environment variable: the folder that all processes of one test run share."""


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that the first process of a run that asks fills; the others wait for it.

    Args:
        name: The folder's name, one for each ``make``.
        make: Fills the folder that it is given, which does not exist yet. If it raises, the next
            process tries again.
    """
    folder = Path(os.environ[RUN_FOLDER]) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(f".{os.getpid()}")
            make(unfinished)
            unfinished.rename(folder)
    return folder
