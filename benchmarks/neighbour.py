"""A process beside the measured ones that computes without a pause, as on a shared machine."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NICE = 10


@contextmanager
def neighbour(busy: bool = True) -> Iterator[None]:
    """Runs a niced process that computes without a pause, if ``busy``."""
    if not busy:
        yield
        return
    code = f"import os\nos.nice({NICE})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()
