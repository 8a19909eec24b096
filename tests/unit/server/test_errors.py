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
