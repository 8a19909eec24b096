"""Reads the body of a request, within limits on its size, its time and the memory of the server."""

import asyncio
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from gradcam_server.errors import DeadlineError, TooLargeError
from gradcam_server.pipeline.ledger import Claim

_STEP_BYTES = 1 << 20


@dataclass(frozen=True)
class BodyLimits:
    """The limits of a body.

    Attributes:
        max_bytes: Max size in bytes.
        max_receive_s: Max time until it has arrived, in seconds.
    """

    max_bytes: int
    max_receive_s: float


async def read_body(request: Request, limits: BodyLimits, claim: Claim) -> bytes:
    """Reads a body.

    Args:
        request: The request.
        limits: The limits of its body.
        claim: Counts the memory that the body holds while it arrives.

    Raises:
        TooLargeError: It is larger than the limit; a declared size is refused before reading.
        DeadlineError: It takes longer than the limit.
        QueueFullError: There is too little memory for it now.
        asyncio.CancelledError: The client is gone.
    """
    declared = _declared_bytes(request)
    if declared > limits.max_bytes:
        raise _too_large(limits)
    claim.receive(declared)
    counted = declared
    parts: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(limits.max_receive_s):
            async for part in request.stream():
                received += len(part)
                if received > limits.max_bytes:
                    raise _too_large(limits)
                if received > counted:
                    claim.receive(_STEP_BYTES)
                    counted += _STEP_BYTES
                if part:
                    parts.append(part)
    except TimeoutError:
        raise DeadlineError(
            f"the body did not arrive in {limits.max_receive_s:g} s: send it faster, or send less"
        ) from None
    except ClientDisconnect:
        raise asyncio.CancelledError from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _declared_bytes(request: Request) -> int:
    """Returns the size that the headers declare; 0 if the body comes in chunks."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _too_large(limits: BodyLimits) -> TooLargeError:
    return TooLargeError(
        f"the body is larger than {limits.max_bytes:,} bytes, which is the limit of this server "
        "(--max-message-bytes): send a smaller image"
    )
