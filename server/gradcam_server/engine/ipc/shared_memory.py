"""Memory that the front end and the engine share. ``shared_slots`` says how they use it."""

import os


def create_shared_memory() -> int:
    """Returns the file descriptor of new memory, without a size yet. Children do not inherit it.

    Raises:
        OSError: There is no descriptor or memory left.
    """
    return os.memfd_create("gradcam-images")
