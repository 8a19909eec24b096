"""The memory of a process: how much it is, and what the C library's allocator keeps of it."""

import ctypes
import resource
import sys
from pathlib import Path

# Of <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_ARENAS = 2
# Getting fresh memory for each image takes time, a third of that of decoding and resizing small
# ones: these share heaps, whose ends are kept up to a size.
_IMAGE_BYTES = 1 << 20
_KEPT_BYTES = 4 << 20


def give_images_back() -> None:
    """Lets glibc return the memory of large images to the system as soon as they are done with.

    As it is, glibc takes large blocks from the heaps that it keeps for each thread, once one
    was freed, and images of all sizes leave these full of holes: memory seems to grow.
    Does nothing with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _IMAGE_BYTES)
        # Having set the other, it would stay at its default, less than one raw image.
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def resident_bytes() -> int:
    """Returns the memory that this process has in use; its peak where the system tells no more."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
        return int(pages) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
