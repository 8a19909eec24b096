"""Exports as sources of graphs: batches in flight, and a precision that cannot be had."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.engine.sources.export import ExportedSource
from gradcam_server.graphs.compilers.base import COMPILERS
from gradcam_server.graphs.executable import CompilationCounter
from support.tiny_stablehlo import SIZE, write_stablehlo


@pytest.mark.parametrize(("device", "depth"), [("GPU:0", 3), ("GPU:7", 3), ("CPU:0", 1)])
def test_a_gpu_has_several_batches_in_flight(device: str, depth: int) -> None:
    """One is uploaded, one computed and one fetched; a CPU computes one after the other."""
    assert COMPILERS[Compiler.PJRT].depth_on(device) == depth
    assert COMPILERS[Compiler.OPENVINO].depth_on(device) == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_the_graphs_of_an_export_have_the_depth_of_their_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, depth: int
) -> None:
    """The batcher reads it there; the answers are the same."""
    row = replace(COMPILERS[Compiler.PJRT], depths={"CPU": depth})
    monkeypatch.setitem(COMPILERS, Compiler.PJRT, row)
    write_stablehlo(tmp_path / "tiny")
    config = ServeConfig(device=("CPU:0",), cache_dir=str(tmp_path))
    spec = ModelSpec("tiny", str(tmp_path / "tiny"))
    source = ExportedSource(spec, config, CompilationCounter())
    (key,) = [replace(graph.key, model=spec.id) for graph in source._manifest.graphs]
    compiled = source.compile(key, (1, 2))
    assert compiled.depth == depth
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    waits = [compiled.dispatch([GraphItem(image, ())], 1) for _ in range(2)]
    assert all(np.isfinite(wait()[0].logits).all() for wait in waits)


@pytest.mark.parametrize(("asked", "is_said"), [("float32", False), ("bfloat16", True)])
def test_a_precision_that_an_export_does_not_have_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: str, is_said: bool
) -> None:
    """It was decided by gradcam export, and once was ignored in silence."""
    write_stablehlo(tmp_path / "tiny")
    config = ServeConfig(device=("CPU:0",), cache_dir=str(tmp_path), precision=Precision(asked))
    ExportedSource(ModelSpec("tiny", str(tmp_path / "tiny")), config, CompilationCounter())
    assert ("stays in float32" in caplog.text) is is_said
