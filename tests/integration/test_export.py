"""``gradcam export``, and a server of the exported folder."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from gradcam_client import Client, GradCamError, Raw
from support.server import GRADCAM, RunningServer
from support.small_model import SIZE, build_network


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.keras"
    build_network().save(path)
    return path


def export(model: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [GRADCAM, "export", "--model", f"small={model}", "--preprocessing", "lite", *options],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_server_runs_an_export_without_tensorflow(
    model: Path, tmp_path: Path, images: Path
) -> None:
    """It gives the answers of a server of the model; what is not exported is refused."""
    folder = tmp_path / "small"
    done = export(model, "-o", str(folder), "--warm", "layercam@conv3")
    assert done.returncode == 0, done.stderr
    assert f"gradcam serve --model small={folder}" in done.stdout
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    found = []
    for options in (
        [f"small={folder}"],
        [f"small={model}", "--preprocessing", "lite", "--compiler", "tensorflow"],
    ):
        server = RunningServer("--model", *options)
        try:
            server.wait_ready()
            with Client(server.address) as client:
                found.append(client.explain(image, heatmaps=[Raw()], top_k=2, logits=True))
                if len(found) == 1:
                    maps = Path(f"/proc/{server.engines()[0].pid}/maps").read_text()
                    assert "libtensorflow" not in maps
                    assert "openvino" in maps
                    with pytest.raises(GradCamError, match="not in the export"):
                        client.explain(image, method="hirescam")
            assert server.stop() == 0
        finally:
            server.kill()
    ours, theirs = found
    assert ours.logits is not None
    assert theirs.logits is not None
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    for one, other in zip(ours.explanations, theirs.explanations, strict=True):
        assert one.index == other.index
        np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=1e-3, atol=1e-5)


def test_int8_is_written_or_refused_with_its_agreement(
    model: Path, tmp_path: Path, images: Path
) -> None:
    """Below --least-correlation the exit status is 1 and nothing is written; --force writes."""
    folder = tmp_path / "small8"
    options = ("-o", str(folder), "--precision", "int8", "--images", str(images))
    refused = export(model, *options, "--least-correlation", "1")
    assert refused.returncode == 1
    assert "the maps correlate by 0." in refused.stderr
    assert not folder.exists()
    forced = export(model, *options, "--least-correlation", "1", "--force")
    assert forced.returncode == 0, forced.stderr
    assert "best class is the same for" in forced.stdout
    again = export(model, *options)
    assert again.returncode == 1
    assert "exists already" in again.stderr
