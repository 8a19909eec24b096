"""Tells whether a file is open for writing."""

import errno
import fcntl
import os
import signal
from pathlib import Path


def has_writer(path: Path) -> bool | None:
    """Returns whether some process has a file open for writing.

    The kernel says so by refusing a read lease (fcntl(2)).

    Returns:
        None where that cannot be known: on network file systems, for files of other users, and
        where there are no leases.

    Raises:
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # A writer that opens the file meanwhile breaks the lease by a signal, which by default
        # ends the process: this one is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (AttributeError, OSError) as error:
        is_refused = isinstance(error, OSError) and error.errno == errno.EAGAIN
        return True if is_refused else None
    finally:
        os.close(descriptor)
    return False
