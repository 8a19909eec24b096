"""The memory of images goes back to the system."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")

# An image of 8 MiB teaches glibc to keep smaller ones in its heap; a block at the heap's top
# then holds all that lies below.
PROGRAM = """
import re, sys
import numpy as np
from pathlib import Path
from gradcam_server.memory import give_images_back

def used():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

if sys.argv[1] == "given back":
    give_images_back()
np.ones(8 << 20, np.uint8)
before = used()
images = [np.ones(1 << 20, np.uint8) for _ in range(64)]
pin = np.ones(100 << 10, np.uint8)
assert used() - before > 60
del images
print(used() - before)
"""


def kept_mib(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def test_images_leave_no_memory_behind() -> None:
    """64 MiB of images are gone once they are freed; without our settings they stay."""
    assert kept_mib("given back") < 8
    assert kept_mib("kept") > 48
