"""Lines that native code writes to stderr, as records of the JSON log.

    libjpeg, libpng, TensorFlow, gRPC --descriptor 2--> this module, as a process --> stderr

Python still writes to stderr itself. The reader is a process because it must outlive the writers:
the last lines of a process that aborts are still in the pipe when it is gone. It waits for nothing
but stderr, so a full pipe empties whatever locks the writers hold.
"""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO

from gradcam_server.errors import StartupError, failure_reason
from gradcam_server.telemetry.logs import configure

logger = logging.getLogger("native")

# The beginning of a line of glog, TensorFlow and abseil:
# I0000 ..., or 2026-01-31 12:00:00.123456: I ...
_SEVERITY = re.compile(r"(?:\d{4}-\d\d-\d\d [\d:.]+ )?([IWEF])(?:\d{4})? ")
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_MAX_LINE_BYTES = 64 * 1024
_LAST_LINES_S = 2.0

_stderr: int | None = None


@contextmanager
def logged_as_json(level: str) -> Iterator[None]:
    """Logs lines of native code in this process and its children as JSON, within the context.

    Args:
        level: Minimum severity that is logged. Lines without a severity count as warnings and are
            always logged: they may be the last lines of a crash.

    Raises:
        StartupError: There is no descriptor, process or memory left for the reader.
    """
    global _stderr
    with ExitStack() as on_failure:
        try:
            stderr = os.dup(2)
            on_failure.callback(os.close, stderr)
            reader = subprocess.Popen(  # noqa: S603 - our own module
                (sys.executable, "-m", "gradcam_server.telemetry.native_stderr", level),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C does not end it
            )
        except OSError as error:
            reason = failure_reason(error)
            raise StartupError(f"--log-format json needs a process: {reason}") from error
        on_failure.pop_all()
    before, _stderr = sys.stderr, stderr
    assert reader.stdin
    with reader.stdin:
        os.dup2(reader.stdin.fileno(), 2)
    write_python_to(_stderr)
    configure(level, "json")
    try:
        yield
    finally:
        os.dup2(_stderr, 2)
        sys.stderr, _stderr = before, None
        configure(level, "json")
        with suppress(subprocess.TimeoutExpired):  # an engine may still write
            reader.wait(_LAST_LINES_S)


def stderr_for_children() -> tuple[int, ...]:
    """Returns the descriptor that children pass to ``write_python_to``; none if that is 2."""
    return () if _stderr is None else (_stderr,)


def write_python_to(stderr: int) -> None:
    """Makes a file descriptor Python's stderr; descriptor 2 is left to native code."""
    sys.stderr = os.fdopen(stderr, "w", buffering=1, errors="backslashreplace", closefd=False)


def log_lines(stream: IO[bytes]) -> None:
    """Logs a stream line by line until its end."""
    while line := stream.readline(_MAX_LINE_BYTES):
        text = line.decode("utf-8", "backslashreplace").rstrip()
        found = _SEVERITY.match(text)
        if text:
            logger.log(_LEVELS[found[1]] if found else logging.WARNING, "%s", text)


def main() -> None:
    """Runs the process, until the last writer is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    level = sys.argv[1]
    configure(level if level in ("debug", "info") else "warning", "json")
    log_lines(sys.stdin.buffer)


if __name__ == "__main__":
    main()
