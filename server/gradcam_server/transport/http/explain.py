"""POST /v1/models/NAME[/versions/V]:explain, the HTTP form of ``ExplainImage``."""

from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.domain.requests import RawImage
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.gradcam_v1.service import EXPLAIN_IMAGE, ExplanationService
from gradcam_server.transport.gradcam_v1.wire import ReceivedRequest
from gradcam_server.transport.http.answers import check_answer, to_response
from gradcam_server.transport.http.call import AdmittedCall, HttpCalls
from gradcam_server.transport.http.documents import read_json, take_bytes, to_message
from gradcam_server.transport.http.multipart import read_form
from gradcam_server.transport.http.negotiation import (
    Answer,
    Body,
    body_kind,
    choose_answer,
)
from gradcam_server.transport.http.options import FIELDS, read_size
from gradcam_server.transport.http.options import to_message as options_to_message
from gradcam_server.transport.http.paths import MODEL, MODEL_VERSION

_MAX_PARAMETERS = 200
# Forms and JSON keep the event loop longer than files of the same size, about by this factor.
_PARSING_COST = 4
_RAW = ("raw_image", "rawImage")


class ExplainEndpoint:
    """Explains images.

    Args:
        calls: Admits requests.
        service: Explains.
    """

    def __init__(self, calls: HttpCalls, service: ExplanationService) -> None:
        self._calls, self._service = calls, service

    def routes(self) -> list[Route]:
        """Returns the routes."""
        return [
            Route(f"/v1/models/{path}:explain", self.explain, methods=["POST"])
            for path in (MODEL, MODEL_VERSION)
        ]

    async def explain(self, request: Request) -> Response:
        """Answers a request."""
        async with self._calls.admitted(request) as call:
            answer = choose_answer(request.headers.get("accept", ""))
            kind = body_kind(request.headers.get("content-type", ""))
            async with call.answering(EXPLAIN_IMAGE) as (record, claim, deadline):
                message = await _read(call, kind, answer)
                response = await self._service.explain(message, record, claim, deadline, wait=False)
                return to_response(answer, response)


async def _read(
    call: AdmittedCall, kind: Body, answer: Answer
) -> ReceivedRequest | pb.ExplainImageRequest:
    """Reads the request for an image.

    Raises:
        InvalidRequestError: It is wrong.
        TooLargeError: It is too large.
        DeadlineError: It takes too long.
        QueueFullError: There is too little memory for it now.
    """
    request = call.request
    place = request.path_params["name"], request.path_params.get("version", "")
    query: str = request.scope["query_string"].decode("latin-1")
    if kind is Body.JSON:
        body = await call.body(cost=_PARSING_COST)
        return _from_json(read_json(body), *place, query, answer)
    call.name_fields(FIELDS)
    if kind is Body.FORM:
        _options(query, *place, answer)  # errors of the query before the body is read
        body = await call.body(cost=_PARSING_COST)
        image, pairs = read_form(request.headers["content-type"], body)
        message = _to_message([*_pairs(query), *pairs], *place, answer)
        return _received(image, message)
    options = _options(query, *place, answer)
    if kind is Body.IMAGE:
        image = await call.body()
        if not image:
            raise InvalidRequestError("encoded_image", "the body is empty: send an image file")
        return ReceivedRequest(image, *options)
    height, width = read_size(_pairs(query))
    return ReceivedRequest(RawImage(await call.body(), height, width), *options)


@lru_cache(maxsize=256)
def _options(query: str, model: str, version: str, answer: Answer) -> tuple[bytes, str, str, bool]:
    """Reads the options of a query; clients send the same again and again.

    Returns:
        What ``ReceivedRequest`` has beside the image.

    Raises:
        InvalidRequestError: An option is wrong.
    """
    message = _to_message(_pairs(query), model, version, answer)
    return message.SerializeToString(), model, version, message.include_logits


def _to_message(
    pairs: list[tuple[str, str]], model: str, version: str, answer: Answer
) -> pb.ExplainImageRequest:
    message = options_to_message(pairs)
    message.model, message.model_version = model, version
    check_answer(answer, message)
    return message


def _received(image: bytes | RawImage, message: pb.ExplainImageRequest) -> ReceivedRequest:
    return ReceivedRequest(
        image,
        message.SerializeToString(),
        message.model,
        message.model_version,
        message.include_logits,
    )


def _from_json(
    document: dict[str, Any], model: str, version: str, query: str, answer: Answer
) -> ReceivedRequest | pb.ExplainImageRequest:
    """Reads an ``ExplainImageRequest`` in the JSON form of proto3."""
    if query:
        raise InvalidRequestError(
            "", "with JSON all options are fields of the body: send no query parameters"
        )
    image = take_bytes(document, "encoded_image", "encodedImage", field="encoded_image")
    raw: dict[str, Any] = next(
        (document[name] for name in _RAW if isinstance(document.get(name), dict)), {}
    )
    pixels = take_bytes(raw, "data", field="raw_image.data")
    message = to_message(document, pb.ExplainImageRequest())
    for field, place in (("model", model), ("model_version", version)):
        given = getattr(message, field)
        if given and given != place:
            raise InvalidRequestError(
                field,
                f"{field} is {given[:100]!r} in the body and {place!r} in the path: leave it out",
            )
        setattr(message, field, place)
    check_answer(answer, message)
    if message.HasField("raw_image"):
        if image is not None:
            raise InvalidRequestError("image", "several forms of image are set; choose one")
        size = message.raw_image.height_px, message.raw_image.width_px
        message.ClearField("raw_image")
        return _received(RawImage(pixels or b"", *size), message)
    return message if image is None else _received(image, message)


def _pairs(query: str) -> list[tuple[str, str]]:
    """Reads the parameters of a query.

    Raises:
        InvalidRequestError: There are too many, or they are not UTF-8.
    """
    try:
        return parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS
        )
    except ValueError as error:
        raise InvalidRequestError("", f"the query cannot be read: {error}") from None
