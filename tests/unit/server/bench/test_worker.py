"""Objects in other processes."""

import os

import pytest

from gradcam_server.bench.worker import Worker, WorkerError
from support.made_up import Counter


def test_an_object_lives_in_a_process_of_its_own() -> None:
    """It keeps its state from call to call, and has its own environment."""
    with Worker(Counter, 40, environment={"GRADCAM_TEST": "there"}) as worker:
        worker.call("add", 1)
        assert worker.call("add", 1) == (42, worker.pid)
        assert worker.pid != os.getpid()
        assert worker.call("variable", "GRADCAM_TEST") == "there"


def test_errors_come_back() -> None:
    """Errors come with their traceback; the process goes on, unless it died."""
    with Worker(Counter, 0) as worker:
        with pytest.raises(WorkerError, match="as asked"):
            worker.call("fail")
        assert worker.call("add", 1)[0] == 1
        with pytest.raises(WorkerError, match="exit status 3"):
            worker.call("die")
    with pytest.raises(WorkerError, match="TypeError"):
        Worker(Counter)
