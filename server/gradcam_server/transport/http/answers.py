"""Writes answers in the form that the client accepts."""

import io

import numpy as np
from starlette.responses import Response

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.http.documents import to_document, write_json
from gradcam_server.transport.http.negotiation import Answer

HEATMAPS: dict[Answer, str] = {Answer.JPEG: "overlay_jpeg", Answer.PNG: "overlay_png"}
"""The form of the heat map that is the whole answer, as a value of the option ``heatmap``."""


def check_answer(answer: Answer, message: pb.ExplainImageRequest) -> None:
    """Checks that the answer to a request has a form; sets the form of its heat maps.

    Args:
        answer: The form of the answer.
        message: The request, without its image; its heat maps are replaced for a picture.

    Raises:
        InvalidRequestError: It cannot have this form.
    """
    if answer is Answer.JSON:
        return
    if message.HasField("top_k") and not message.top_k:
        raise InvalidRequestError(
            "top_k", f"{answer} shows an explanation and top_k is 0: accept application/json"
        )
    wanted = pb.HeatmapRequest(format=pb.HEATMAP_FORMAT_RAW_FLOAT32)
    if answer is Answer.NPZ:
        message.include_logits = True
    else:
        if message.heatmaps:
            wanted.CopyFrom(message.heatmaps[0])
        is_jpeg = answer is Answer.JPEG
        wanted.format = pb.HEATMAP_FORMAT_OVERLAY_JPEG if is_jpeg else pb.HEATMAP_FORMAT_OVERLAY_PNG
    del message.heatmaps[:]
    message.heatmaps.append(wanted)


def to_response(answer: Answer, response: pb.ExplainImageResponse) -> Response:
    """Writes an answer.

    Args:
        answer: Its form. A picture is the overlay of the first explanation; arrays are those that
            ``gradcam explain --npz`` writes.
        response: The answer.
    """
    match answer:
        case Answer.JSON:
            content = write_json(to_document(response))
        case Answer.NPZ:
            content = _to_npz(response)
        case Answer.JPEG | Answer.PNG:
            content = response.explanations[0].heatmaps[0].data
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    return Response(content, headers=headers, media_type=answer.value)


def _to_npz(response: pb.ExplainImageResponse) -> bytes:
    """Writes the arrays ``classes``, ``heatmaps`` and ``logits``.

    Maps of layers of several sizes are ``heatmaps_0``, ``heatmaps_1`` and so on.
    """
    explanations = response.explanations
    maps = [
        np.frombuffer(heatmap.data, "<f4").reshape(heatmap.height_px, heatmap.width_px)
        for explanation in explanations
        for heatmap in explanation.heatmaps
    ]
    if len({one.shape for one in maps}) == 1:
        named = {"heatmaps": np.stack(maps)}
    else:
        named = {f"heatmaps_{index}": one for index, one in enumerate(maps)}
    file = io.BytesIO()
    np.savez(
        file,
        classes=np.array([one.class_index for one in explanations], np.int32),
        logits=np.array(response.logits, np.float32),
        **named,  # type: ignore[arg-type] # the stubs take each for allow_pickle
    )
    return file.getvalue()
