"""Content negotiation: what a request's body is, and in which form the answer is sent."""

from enum import StrEnum
from functools import lru_cache
from http import HTTPStatus

from gradcam_server.transport.http.problems import ProblemError

JSON = "application/json"
RAW_PIXELS = "application/x-uint8-rgb"
FORM = "multipart/form-data"
_UNNAMED = ("", "application/octet-stream", "application/x-www-form-urlencoded")


class Answer(StrEnum):
    """A form of the answer; the value is its media type."""

    JSON = JSON
    JPEG = "image/jpeg"
    PNG = "image/png"
    NPZ = "application/x-npz"


class Body(StrEnum):
    """What a body is."""

    IMAGE = "image"
    PIXELS = "pixels"
    FORM = "form"
    JSON = "json"


@lru_cache(maxsize=128)
def choose_answer(accept: str) -> Answer:
    """Chooses the form of an answer by the header Accept; the first of the best, JSON by default.

    Raises:
        ProblemError: None of the forms is accepted.
    """
    if not accept.strip():
        return Answer.JSON
    ranges = [_range(part) for part in accept.split(",")[:50]]
    best, best_quality = None, 0.0
    for answer in Answer:
        # The most specific range decides about a type (RFC 9110, 12.5.1).
        found = max(
            (one for one in ranges if one[0] in _ranges(answer)),
            key=lambda one: (one[0].count("*") == 0, one[0] != "*/*"),
            default=None,
        )
        if found is not None and found[1] > best_quality:
            best, best_quality = answer, found[1]
    if best is None:
        raise ProblemError(
            HTTPStatus.NOT_ACCEPTABLE,
            f"no answer is {accept[:100]!r}",
            f"accept one of: {', '.join(Answer)}",
            "Accept",
        )
    return best


def body_kind(content_type: str) -> Body:
    """Returns what a body is, by the header Content-Type.

    Without a type, and with the type that curl gives to all data, a body is an image.

    Raises:
        ProblemError: It is none of what is taken.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == JSON or (media_type.startswith("application/") and "+json" in media_type):
        return Body.JSON
    if media_type.startswith("image/") or media_type in _UNNAMED:
        return Body.IMAGE
    if media_type == FORM:
        return Body.FORM
    if media_type == RAW_PIXELS:
        return Body.PIXELS
    raise ProblemError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"the body is {media_type[:100]!r}",
        f"send image/jpeg, image/png, image/webp, image/bmp, {FORM}, {RAW_PIXELS} or {JSON}",
        "Content-Type",
        {"Accept-Post": f"image/*, {FORM}, {RAW_PIXELS}, {JSON}"},
    )


def _ranges(answer: Answer) -> tuple[str, str, str]:
    return answer.value, f"{answer.value.partition('/')[0]}/*", "*/*"


def _range(text: str) -> tuple[str, float]:
    """Reads a media range and its quality."""
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                quality = 0.0
    return name, quality if 0 <= quality <= 1 else 0.0
