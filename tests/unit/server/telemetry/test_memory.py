"""The memory that a process may have, and the reuse of images' memory."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from gradcam_server.telemetry.memory import available_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")

# Images of 8 MiB teach glibc to keep smaller ones in heaps; a block at a heap's top then holds
# all that lies below.
PROGRAM = """
import re, sys, threading
import numpy as np
from pathlib import Path
from gradcam_server.telemetry.memory import share_heap

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


GIB = 1 << 30
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, 16 * GIB),
        ("0::/a/b\n", {f"{V2}/a/b/memory.max": "max", f"{V2}/a/memory.max": str(2 * GIB)}, 2 * GIB),
        ("0::/a\n", {f"{V2}/a/memory.max": str(4 * GIB), f"{V2}/a/memory.high": str(GIB)}, GIB),
        ("0::/../host/path\n", {f"{V2}/memory.max": str(3 * GIB)}, 3 * GIB),
        ("4:memory:/x\n0::/\n", {f"{V1}/x/memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:cpu,memory:/x\n", {f"{V1}/memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:memory:/x\n", {f"{V1}/x/memory.limit_in_bytes": "9223372036854771712"}, 16 * GIB),
    ],
    ids=["none", "of a parent", "high", "container", "version 1", "its container", "unlimited"],
)
def test_control_groups_limit_the_memory(
    tmp_path: Path, groups: str, limits: Mapping[str, str], expected: int
) -> None:
    """The limit of a group or of its parent; the machine's memory without a limit."""
    files = {"proc/meminfo": "MemTotal: 16777216 kB\n", "proc/self/cgroup": groups, **limits}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_bytes(tmp_path) == expected


def test_the_machine_itself_has_memory() -> None:
    """Read from the real files."""
    assert available_bytes() > 1 << 28
