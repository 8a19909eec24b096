"""The choice of peers, and what is sent to them."""

import argparse
from unittest.mock import Mock

import numpy as np
import pytest

from gradcam_server.bench.load import Closed, Load, Open
from gradcam_server.bench.payload import jpeg, pixels
from gradcam_server.bench.running import StartError
from options import add_peer_options
from peers import servers
from peers.servers import Candidate, RunningPeer, candidates
from peers.work import Decoder, Options
from serving_peers import _is_possible, _kept


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["--peer", "none"], []),
        (["--peer", "mosec", "--workers", "1,2"], ["mosec", "mosec, 2 workers"]),
        (["--peer", "mosec", "--peer", "ray:2"], ["mosec", "Ray Serve, 2 workers"]),
        (
            ["--peer", "litserve", "--workers", "2", "--hand-made", "a"],
            [
                "LitServe, 2 workers",
                "LitServe, ONNX closed form, 2 workers",
                "LitServe, torch autograd, 2 workers",
            ],
        ),
    ],
)
def test_options_name_the_candidates(given: list[str], names: list[str]) -> None:
    """A peer may have a number of workers of its own, and a user's graphs beside the server's."""
    parser = argparse.ArgumentParser()
    add_peer_options(parser)
    assert [candidate.name for candidate in candidates(parser.parse_args(given))] == names


def test_the_best_of_each_peer_stays() -> None:
    """By throughput, and whichever answers one user soonest."""
    figures = {
        Candidate("litserve", 1): (40.0, 25.0),
        Candidate("litserve", 2): (50.0, 35.0),
        Candidate("mosec", 1): (47.0, 30.0),
        Candidate("mosec", 2): (41.0, 40.0),
        Candidate("ray", 1): (30.0, 60.0),
        Candidate("litserve", 1, "onnx"): (20.0, None),
        Candidate("mosec", 2, "onnx"): (22.0, None),
        Candidate("litserve", 1, "torch"): (2.0, None),
    }
    rate = {candidate.name: images for candidate, (images, _) in figures.items()}
    p50 = {candidate.name: latency for candidate, (_, latency) in figures.items()}
    assert _kept([RunningPeer(candidate, Mock()) for candidate in figures], rate, p50) == {
        "LitServe",
        "LitServe, 2 workers",
        "mosec",
        "Ray Serve",
        "mosec, ONNX closed form, 2 workers",
        "LitServe, torch autograd",
    }
    assert _kept([], {}, {}) == set()


def test_peers_explain_the_pixels_that_were_sent() -> None:
    """Raw pixels of the input's size are taken as they are; a file is decoded."""
    decode = Decoder(Options(1, 2.0, 1, "server", None, ("--model", "resnet50")))
    raw = pixels(None, (224, 224))
    np.testing.assert_array_equal(decode(raw.tobytes()), raw)
    assert decode(jpeg(None)).shape == raw.shape


@pytest.mark.parametrize(("failures", "starts"), [(0, True), (1, True), (2, False)])
def test_a_peer_gets_a_second_start(
    failures: int, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that fails to start twice is left out; one failure is forgiven."""
    server = Mock()
    outcomes = [*[StartError("as asked")] * failures, server]
    monkeypatch.setattr(servers, "start", Mock(side_effect=outcomes))
    candidate, arguments = Candidate("triton", 2), argparse.Namespace()
    if starts:
        assert servers.start_patiently(candidate, "python", [], arguments) is server
    else:
        with pytest.raises(StartError):
            servers.start_patiently(candidate, "python", [], arguments)


@pytest.mark.parametrize(
    ("load", "possible"),
    [(Closed(16, 1), True), (Closed(32, 1), False), (Open(5, 1), True), (Open(5.5, 1), False)],
)
def test_a_slow_graph_is_spared_loads_that_only_fill_its_queue(load: Load, possible: bool) -> None:
    """At 5 images/s, 32 users wait too long, and more than 5 requests/s are never answered."""
    assert _is_possible(load, 5.0) is possible
