"""The memory of images is used again."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")

# Images of 8 MiB teach glibc to keep smaller ones in heaps; a block at a heap's top then holds
# all that lies below.
PROGRAM = """
import re, sys, threading
import numpy as np
from pathlib import Path
from gradcam_server.memory import share_heap

def used():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

if sys.argv[1] == "shared":
    share_heap()
np.ones(8 << 20, np.uint8)
pins = []
turns = [threading.Lock() for _ in range(5)]
done = threading.Event()

def work(turn):
    with turns[turn]:
        images = [np.ones(1 << 20, np.uint8) for _ in range(48)]
        pins.append(np.ones(100 << 10, np.uint8))
        del images
    turns[turn + 1].release()
    done.wait()

before = used()
for lock in turns:
    lock.acquire()
for turn in range(4):
    threading.Thread(target=work, args=(turn,)).start()
turns[0].release()
turns[4].acquire()
print(used() - before)
done.set()
"""


def kept_mib(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def test_threads_use_again_what_others_have_freed() -> None:
    """Four threads with 48 MiB of images each, in turn, need them once; else each keeps its own."""
    assert kept_mib("shared") < 72
    assert kept_mib("kept") > 120
