"""The batch sizes of a job."""

import pytest

from gradcam_server.batch.throughput import best_size
from gradcam_server.domain.graph_io import GraphKey
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.graphs.executable import CompiledGraph

KEY = GraphKey("made", ("top",), Method.GRAD_CAM, ScoreType.LOGIT, 1)


@pytest.mark.parametrize(
    ("cost_s", "best"),
    [
        ({1: 0.005, 4: 0.0146, 16: 0.0642}, 4),  # a larger one is slower
        ({1: 0.004, 8: 0.006, 64: 0.030}, 64),
        ({1: 0.010, 4: 0.0399}, 1),  # no worse, and smaller
    ],
)
def test_no_batch_is_larger_than_pays(cost_s: dict[int, float], best: int) -> None:
    """The size of the highest throughput is chosen, the smaller one if they are equal."""
    graph = CompiledGraph(KEY, (8, 8), Compiler.XLA, {size: [] for size in cost_s}, cost_s)
    assert best_size(graph) == best


def test_sizes_that_do_not_pay_are_not_planned() -> None:
    """Larger sizes are not used, however many images wait."""
    executables = {1: [str], 4: [str], 16: [str]}
    graph = CompiledGraph(KEY, (8, 8), Compiler.XLA, executables, {1: 1.0, 4: 3.0, 16: 11.9})  # type: ignore[arg-type]
    assert graph.plan(480) == (16, 16)
    assert graph.up_to(4).plan(480) == (4, 4)
    assert graph.up_to(4).batch_sizes == (1, 4)
