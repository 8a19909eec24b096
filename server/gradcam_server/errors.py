"""What can go wrong, drawn along the data flow.

    start      StartupError: a model or an option that cannot be used
    request    NotReadyError: warming up or draining
               QueueFullError: no place
               InvalidRequestError: a bad image, class or option
               NotFoundError: no such model or layer
    decode     InvalidRequestError
    graph      anything else is a fault of ours; its text is logged, never sent
    render     (the same)

Each message is written for the caller: what was wrong, and what would be right.
``service.py`` holds the one table from these errors to gRPC codes.
"""


class ExplanationServerError(Exception):
    """Base of all errors whose message may be shown to a caller."""


class StartupError(ExplanationServerError):
    """The server, or an in-process explanation, cannot start as configured."""


class InvalidRequestError(ExplanationServerError):
    """The request can never succeed as it is.

    Attributes:
        field: The request field that is wrong, as in the proto file.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NotFoundError(ExplanationServerError):
    """No such model or layer.

    Attributes:
        field: The request field that names it, as in the proto file.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class RetryableError(ExplanationServerError):
    """The same request may succeed later.

    Attributes:
        retry_after_s: When to try again, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(RetryableError):
    """All places in the queue are taken."""


class NotReadyError(RetryableError):
    """The server is warming up or draining."""
