"""The memory of a process: how much it is, and what the C library's allocator keeps of it."""

import ctypes
import resource
import sys
from pathlib import Path

# Of <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Fresh memory costs page faults: those of a 2-megapixel JPEG take longer than decoding it. So all
# but very large images come from one heap, whose end is kept up to a size.
_IMAGE_BYTES = 32 << 20
_KEPT_BYTES = 64 << 20


def share_heap() -> None:
    """Lets all threads take the memory of their images from one heap of glibc.

    As it is, glibc keeps a heap for each thread, and images of all sizes leave these full of
    holes that no other thread can use: memory seems to grow. Does nothing with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _IMAGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def resident_bytes() -> int:
    """Returns the memory that this process has in use; its peak where the system tells no more."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
        return int(pages) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
