"""Errors between processes."""

import pickle

import pytest

from gradcam_server import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequestError("layers", "no such"),
        errors.NotFoundError("model", "no such"),
        errors.QueueFullError("full", 0.5),
        errors.EngineLostError("lost", 7.5),
        errors.DeadlineError("late"),
        errors.StartupError("cannot"),
    ],
)
def test_errors_cross_to_another_process(error: Exception) -> None:
    """What the engine raises arrives at the front end whole."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no memory", "no memory"),
        ("\n\n  no memory\nand more", "no memory"),
        (
            "Graph execution error:\n\nDetected at node X defined at (most recent call last):\n"
            "<stack traces unavailable>\nInput to reshape is a tensor with 24 values",
            "Input to reshape is a tensor with 24 values",
        ),
        (
            "Check 'false' failed at report.cpp:151:\nModel wasn't converted.\nSummary:",
            "Model wasn't converted.",
        ),
        (
            "Exception encountered when calling F.call().\n\n\x1b[1mCannot reshape\x1b[0m\n\nArgs:",
            "Cannot reshape",
        ),
        ("Only a heading:", "Only a heading:"),
        ("x" * 350_000, "x" * 300 + " ..."),
    ],
)
def test_texts_of_libraries_are_quoted_in_one_line(text: str, expected: str) -> None:
    """The line that says what is wrong, of texts as TensorFlow, OpenVINO and Keras write them."""
    assert errors.quote(RuntimeError(text)) == expected


def test_an_error_without_a_text_is_quoted_by_its_type() -> None:
    """So that no message ends in nothing."""
    assert errors.quote(AssertionError()) == "AssertionError"
