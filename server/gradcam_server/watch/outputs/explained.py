"""Finds the explanation of a result that its map is of."""

from gradcam_client.results import Explanation
from gradcam_server.watch.frames import FrameResult


def explanation_of(result: FrameResult) -> Explanation | None:
    """Returns the explanation of the result's target; None if the frame failed."""
    if result.explanation is None or not result.explanation.explanations:
        return None
    explanations = result.explanation.explanations
    index = result.target.partition(" ")[0]
    return next((one for one in explanations if str(one.index) == index), explanations[0])


def probability_of(result: FrameResult) -> float | None:
    """Returns the probability of the target; None if it is not among the predictions."""
    explanation = explanation_of(result)
    if result.explanation is None or explanation is None:
        return None
    return next(
        (
            best.probability
            for best in result.explanation.predictions
            if best.index == explanation.index
        ),
        None,
    )
