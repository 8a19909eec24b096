"""The memory of this process: how much it uses, may use, and keeps in the C library's heap."""

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

# Of <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Fresh memory costs page faults: those of a 2-megapixel JPEG take longer than decoding it. So all
# but very large images come from one heap, of whose free end a part is kept.
_IMAGE_BYTES = 32 << 20
_KEPT_BYTES = 64 << 20

# By version of Linux' control groups: where they are mounted, and their files with limits.
_CGROUPS = {
    2: (Path("sys/fs/cgroup"), ("memory.max", "memory.high")),
    1: (Path("sys/fs/cgroup/memory"), ("memory.limit_in_bytes",)),
}


def share_heap() -> None:
    """Lets all threads take the memory of images from one heap of glibc.

    By default glibc keeps a heap for each thread, and images of all sizes leave holes in it that no
    other thread can use: memory grows. Does nothing with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _IMAGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def available_bytes(root: Path = Path("/")) -> int:
    """Returns the memory that this process may have: the machine's, or less by its cgroups.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    limits = [_total_bytes(root)]
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text("utf-8").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                limits += _cgroup_limits(root, 2, path)
            elif "memory" in controllers.split(","):
                limits += _cgroup_limits(root, 1, path)
    return min(limits)


def _total_bytes(root: Path) -> int:
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_limits(root: Path, version: int, path: str) -> list[int]:
    """Reads the limits of a group and its parents, as far as this process sees them."""
    mount, names = _CGROUPS[version]
    group = Path(path.lstrip("/"))
    limits = []
    # In a container the path may be the host's; its own group is the root of the mount.
    for folder in (group, *group.parents):
        for name in names:
            with suppress(OSError, ValueError):  # not there, or "max"
                limits.append(int((root / mount / folder / name).read_text("ascii")))
    return limits


def resident_bytes() -> int:
    """Returns the memory in use by this process; its peak if the system reports only that."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
        return int(pages) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
