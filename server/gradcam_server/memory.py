"""What the C library's allocator keeps for itself."""

import ctypes
import sys

# Of <malloc.h>.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_ARENAS = 2
_IMAGE_BYTES = 256 * 1024


def give_images_back() -> None:
    """Lets glibc return the memory of images to the system as soon as they are done with.

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
