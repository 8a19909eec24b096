"""The values of ``--warm``, which name graphs to compile before serving.

Their form is METHOD[:SCORE][@LAYER[+LAYER...]], such as ``layercam``, ``gradcam:probability`` or
``gradcam:probability@block_3+block_5``.
"""

from dataclasses import dataclass

from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.registry import MANY_PASS_METHODS, ONE_PASS_METHODS
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.errors import StartupError

_FORM = "METHOD[:SCORE][@LAYER+LAYER], as in gradcam:probability@LAYER"


@dataclass(frozen=True)
class WarmGraph:
    """A graph to compile before serving.

    Attributes:
        method: The explanation method, of one pass.
        score_type: The score of a class that is explained.
        layers: Names of the layers; empty is each model's default layer.
    """

    method: Method
    score_type: ScoreType
    layers: tuple[str, ...]


def parse_warm(option: str) -> WarmGraph:
    """Reads one value of ``--warm``.

    Raises:
        StartupError: The form is wrong, or the method or the score does not exist.
    """
    graph, at, layers = option.partition("@")
    method, colon, score = graph.partition(":")
    if method in MANY_PASS_METHODS:
        raise StartupError(
            f"--warm {option}: {method} takes many passes, whose graphs are compiled at their "
            f"first use; the method must be one of {', '.join(ONE_PASS_METHODS)}"
        )
    if method not in ONE_PASS_METHODS:
        raise StartupError(
            f"--warm {option}: the method must be one of {', '.join(ONE_PASS_METHODS)}; "
            f"the form is {_FORM}"
        )
    if colon and score not in set(ScoreType):
        raise StartupError(
            f"--warm {option}: the score must be {' or '.join(ScoreType)}; the form is {_FORM}"
        )
    names = tuple(layers.split("+")) if at else ()
    if not all(names):
        raise StartupError(f"--warm {option}: a name of a layer is empty; the form is {_FORM}")
    return WarmGraph(Method(method), ScoreType(score) if colon else ScoreType.LOGIT, names)


def warm_option(key: GraphKey) -> str:
    """Returns the value of ``--warm`` for a graph of one pass."""
    score = "" if key.score_type is ScoreType.LOGIT else f":{key.score_type}"
    return f"{key.method}{score}@{'+'.join(key.layers)}"
