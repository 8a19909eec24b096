"""Several devices: TensorFlow's logical CPU devices stand for GPUs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gradcam_client import Client, Raw
from support.server import RunningServer
from support.small_model import SIZE, build_network

REQUESTS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.keras"
    build_network().save(path)
    return path


@pytest.mark.parametrize("compiler", ["tensorflow", "xla"])
def test_all_devices_compute_and_all_answers_are_right(model: Path, compiler: str) -> None:
    """Each of 60 concurrent requests gets its own answer, the same from either device."""
    images = np.random.default_rng(0).integers(0, 256, (REQUESTS, SIZE, SIZE, 3), np.uint8)
    server = RunningServer(
        *("--model", f"small={model}", "--compiler", compiler, "--batch-sizes", "1,2"),
        *("--device", "CPU:0", "--device", "CPU:1", "--compute-threads", "1", "--http-port", "0"),
    )
    try:
        server.wait_ready()
        with Client(server.address) as client, ThreadPoolExecutor(16) as pool:

            def ask(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                answer = client.explain(image, heatmaps=[Raw()], logits=True)
                assert answer.logits is not None
                return answer.logits, answer.explanations[0].heatmap

            together = list(pool.map(ask, images))
            alone = [ask(image) for image in images]
        busy = [server.metric("gradcam_device_busy_seconds_total", device=d) for d in "01"]
        assert all(seconds > 0 for seconds in busy), busy
        assert server.stop() == 0
    finally:
        server.kill()
    assert len({logits.tobytes() for logits, _ in alone}) == REQUESTS
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_device_that_is_not_there_is_named(model: Path) -> None:
    """The error lists the devices that exist."""
    server = RunningServer("--model", f"small={model}", "--device", "GPU:7")
    try:
        assert server.process.wait(60) == 1
        server.wait_for("--device GPU:7: there is no such device here; there is: CPU:0")
    finally:
        server.kill()
