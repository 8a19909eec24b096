"""The errors of the server, in the order of the data flow.

    start      StartupError: a model or an option that cannot be used
    access     UnauthenticatedError: no token, or an unknown token
               ForbiddenError: a token that may not administer
               LimitError: the caller has, or had, too many requests
    request    NotReadyError: warming up or draining
               QueueFullError: the queue is full
               DeadlineError: the answer would come too late
               TooLargeError: a message over the size limit
               InvalidRequestError: a bad image, class or option
               NotFoundError: no such model or layer
    decode     InvalidRequestError
    compile    CompilerError, DisconnectedLayerError: a graph cannot be compiled
    graph      EngineLostError: the engine died, and is being started again
               any other error is a fault of the server; its text is logged, never sent
    render     (the same)
    reload     ReloadError: the new configuration failed, the old one stays

Each message is written for the caller: what was wrong, and what would be right.
``transport/status.py`` holds the one table from these errors to gRPC codes.
"""

import errno
import os
import re

_SHORTAGES = {
    errno.EMFILE: "no file descriptors left",
    errno.ENFILE: "no file descriptors left on this machine",
    errno.ENOMEM: "no memory left",
}


class ExplanationServerError(Exception):
    """Base of all errors whose message may be shown to a caller."""


class StartupError(ExplanationServerError):
    """The server, or an in-process explanation, cannot start as configured."""


class UnauthenticatedError(ExplanationServerError):
    """The caller has no token, or an unknown token."""


class ForbiddenError(ExplanationServerError):
    """The caller's token does not allow this call."""


class ReloadError(ExplanationServerError):
    """The new configuration cannot be served; the old configuration stays."""


class InvalidRequestError(ExplanationServerError):
    """The request can never succeed as it is.

    Attributes:
        field: The request field that is wrong, as in the proto file.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.field, str(self))


class NotFoundError(ExplanationServerError):
    """No such model or layer.

    Attributes:
        field: The request field that names it, as in the proto file.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.field, str(self))


class TooLargeError(ExplanationServerError):
    """The message is over the size limit."""


class DeadlineError(ExplanationServerError):
    """The answer would come after the caller's deadline."""


class RetryableError(ExplanationServerError):
    """The same request may succeed later.

    Attributes:
        retry_after_s: When to try again, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (str(self), self.retry_after_s)


class QueueFullError(RetryableError):
    """The queue is full, or the wait in it was too long."""


class LimitError(RetryableError):
    """The caller has, or had, more requests than its token or the server allows."""


class NotReadyError(RetryableError):
    """The server is warming up or draining."""


class EngineLostError(RetryableError):
    """The engine's process died, or hung and was killed."""


def is_expected(error: BaseException) -> bool:
    """Returns whether an error is of the system or the settings, not a fault in the code."""
    return isinstance(error, OSError | MemoryError | ExplanationServerError)


def failure_reason(error: BaseException) -> str:
    """Returns an error in words for the log and for administrators."""
    match error:
        case ExplanationServerError():
            return str(error)
        case OSError(errno=int() as number):
            text = _SHORTAGES.get(number) or os.strerror(number)
            return f"{text} ({errno.errorcode.get(number, number)})"
        case MemoryError():
            return "no memory left (MemoryError)"
    return f"{type(error).__name__}: {error}"


_MAX_QUOTE = 300
# Lines before the line that says what is wrong: "Graph execution error:",
# "<stack traces unavailable>", "Exception encountered when calling Conv2D.call()."
_HEADING = re.compile(r".*:$|<.*>$|Exception encountered when calling")
_COLOUR = re.compile(r"\x1b\[\d*m")


def quote(error: BaseException | str) -> str:
    """Returns the text of a library's error, short enough for one line.

    Args:
        error: The error, or its text.

    Returns:
        The first line that is more than a heading, at most 300 characters; the type of an error
        without text.
    """
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = next((line for line in lines if not _HEADING.match(line)), lines[0])
    return line if len(line) <= _MAX_QUOTE else f"{line[:_MAX_QUOTE]} ..."


class CompilerError(Exception):
    """A compiler cannot compile a graph; the text says why."""


class DisconnectedLayerError(ValueError):
    """The classes don't depend on a layer."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"the classes do not depend on {layer}")
        self.layer = layer
