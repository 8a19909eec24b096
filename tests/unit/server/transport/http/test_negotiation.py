"""Which form a body has, and which form an answer gets."""

from http import HTTPStatus

import pytest

from gradcam_server.transport.http.negotiation import Answer, Body, body_kind, choose_answer
from gradcam_server.transport.http.problems import ProblemError


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("", Answer.JSON),
        ("*/*", Answer.JSON),
        ("image/png", Answer.PNG),
        ("IMAGE/JPEG", Answer.JPEG),
        ("image/*", Answer.JPEG),
        ("image/*, image/jpeg;q=0", Answer.PNG),
        ("application/json;q=0.2, image/png;q=0.9", Answer.PNG),
        ("text/html, application/xhtml+xml, */*;q=0.8", Answer.JSON),
        ("application/x-npz", Answer.NPZ),
        ("application/*;q=0.1, image/png; q=0.05", Answer.JSON),
        ("image/png;q=2, application/json", Answer.JSON),
    ],
)
def test_the_best_accepted_form_is_chosen(accept: str, answer: Answer) -> None:
    """By quality, by the most specific range, and JSON first among equals."""
    assert choose_answer(accept) is answer


@pytest.mark.parametrize(
    "accept", ["text/html", "image/gif", "application/json;q=0", ",", "a" * 9000]
)
def test_other_forms_are_refused(accept: str) -> None:
    """406 names what there is."""
    with pytest.raises(ProblemError) as caught:
        choose_answer(accept)
    assert caught.value.status is HTTPStatus.NOT_ACCEPTABLE
    assert "image/png" in caught.value.remedy


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("image/jpeg", Body.IMAGE),
        ("image/webp; charset=binary", Body.IMAGE),
        ("", Body.IMAGE),
        ("application/x-www-form-urlencoded", Body.IMAGE),
        ("application/octet-stream", Body.IMAGE),
        ("Application/JSON; charset=utf-8", Body.JSON),
        ("multipart/form-data; boundary=x", Body.FORM),
        ("application/x-uint8-rgb", Body.PIXELS),
    ],
)
def test_bodies_are_told_apart(content_type: str, kind: Body) -> None:
    """Curl gives every body the type of a form unless it is told another."""
    assert body_kind(content_type) is kind


@pytest.mark.parametrize("content_type", ["text/html", "video/mp4", "json", "multipart/mixed"])
def test_other_bodies_are_refused(content_type: str) -> None:
    """415 names what is taken."""
    with pytest.raises(ProblemError) as caught:
        body_kind(content_type)
    assert caught.value.status is HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert "image/jpeg" in caught.value.remedy
