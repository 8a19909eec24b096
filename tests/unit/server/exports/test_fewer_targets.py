"""An export answers requests for up to as many classes as it was exported for."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.local import LocalStage
from gradcam_server.batch.sources.files import FileSource
from gradcam_server.cli import main
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem, GraphTarget, by_rank
from gradcam_server.engine.engine import Engine
from gradcam_server.errors import StartupError
from support.tiny_export import CLASSES, SIZE, write_tiny_export

TARGETS = 5
"""The default of gradcam export."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    write_tiny_export(folder, TARGETS)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(images()):
        cv2.imwrite(str(folder / f"{number}.png"), image[..., ::-1])
    return folder


@pytest.fixture(autouse=True)
def _settings_of_the_process_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps commands from changing the settings of this process."""
    monkeypatch.setattr("gradcam_server.telemetry.logs.configure", lambda *_: None)
    monkeypatch.setattr("gradcam_server.telemetry.memory.share_heap", lambda: None)


def images() -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8))


def config(folder: Path, max_targets: int) -> ServeConfig:
    return ServeConfig(model=(f"tiny={folder}",), batch_sizes=(1, 4), max_targets=max_targets)


@pytest.mark.parametrize("max_targets", [1, 3, TARGETS])
def test_it_answers_for_so_many_classes_as_are_asked_for(tiny: Path, max_targets: int) -> None:
    """The answer has as many classes as were asked for, the same as of a larger answer."""
    engine = Engine(config(tiny, max_targets))
    engine.warm_up()
    ((key, graph),) = engine.warm.items()
    assert key.max_targets == engine.catalog.max_targets == max_targets
    targets = [GraphTarget(by_rank(rank)) for rank in range(max_targets)]
    items = [GraphItem(image, targets) for image in images()]
    for item, found in zip(items, graph.run(items, 4), strict=True):
        best = np.argsort(-found.logits)[:max_targets]
        np.testing.assert_array_equal(found.classes, best)
        grey = item.image.astype(np.float32).mean(axis=2)
        halves = grey.reshape(SIZE // 2, 2, SIZE // 2, 2).mean(axis=(1, 3))
        expected = halves * found.logits[best, None, None]
        np.testing.assert_allclose(found.maps[0], expected, rtol=1e-4)


def test_more_classes_than_it_was_made_for_are_refused(tiny: Path) -> None:
    """The error names the maximal number."""
    with pytest.raises(StartupError, match=f"--max-targets {TARGETS}"):
        Engine(config(tiny, TARGETS + 1))


def test_of_several_graphs_the_one_for_the_fewest_is_taken(tmp_path: Path) -> None:
    """Each further class may cost a backward pass."""
    write_tiny_export(tmp_path / "two", TARGETS, 2)
    engine = Engine(config(tmp_path / "two", 1))
    source = engine.sources["tiny"]
    (key,) = engine.warm_keys()
    for wanted, found in ((1, 2), (2, 2), (3, TARGETS)):
        graph = source.compile(replace(key, max_targets=wanted), (1,))
        assert graph.key.max_targets == found


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_a_job_runs_a_default_export(tiny: Path, photos: Path, tmp_path: Path) -> None:
    """It explains one class of each image, with an export for several."""
    result = run("batch", photos, tmp_path / "out", "--model", f"tiny={tiny}", "--quiet")
    assert result.exit_code == 0, result.output
    (shard,) = (tmp_path / "out").glob("*.parquet")
    rows = pq.read_table(shard).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert all(len(row["class_index"]) == TARGETS for row in rows)


def test_a_job_of_a_chosen_class_runs_an_export(tiny: Path, photos: Path) -> None:
    """An export for any number of targets, in the engine of this process."""
    source = FileSource("made", [f"{number}.png" for number in range(3)], root=str(photos))
    with LocalStage(config(tiny, 1), ExplainOptions(target=CLASSES - 1)) as stage:
        rows = list(stage.rows(source, [(0, 3)]))
    assert {row.target for row in rows} == {CLASSES - 1}


def test_an_engine_of_ray_runs_a_default_export(tiny: Path, photos: Path) -> None:
    """The code of an actor runs in this process."""
    ray_data = pytest.importorskip("gradcam_server.batch.ray_data")
    engine = ray_data.EngineActor(config(tiny, 1), ExplainOptions(), str(Path.cwd()))
    table = pa.Table.from_pylist(
        [
            {"index": number, "id": str(number), "path": "", "data": path.read_bytes()}
            for number, path in enumerate(sorted(photos.iterdir()))
        ],
        ray_data._IMAGES,
    )
    try:
        rows = engine(table).to_pylist()
    finally:
        engine._stage.close()
    assert [row["status"] for row in rows] == ["ok"] * 3


@pytest.mark.parametrize("options", [(), ("--top-k", 2)])
def test_a_command_explains_by_an_export(
    tiny: Path, photos: Path, options: tuple[object, ...]
) -> None:
    """For any number of classes."""
    result = run("explain", photos / "0.png", "--model", f"tiny={tiny}", "--json", *options)
    assert result.exit_code == 0, result.output
    explained = json.loads(result.stdout)["explanations"]
    assert len(explained) == (options or ("", 1))[1]


def test_layers_of_any_export_are_listed(tmp_path: Path) -> None:
    """Also of an export for fewer classes than a server's default."""
    write_tiny_export(tmp_path / "two", 2)
    result = run("layers", "--model", tmp_path / "two")
    assert result.exit_code == 0, result.output
    assert "conv" in result.output


@pytest.mark.parametrize(("wanted", "count"), [(1, 1), (2, 2)])
def test_an_export_runs_in_streams(tiny: Path, tmp_path: Path, wanted: int, count: int) -> None:
    """The whole CPU and each stream give the same answers; the times are remembered."""
    settings = replace(
        config(tiny, 3), compute_streams=wanted, compute_threads=2, cache_dir=str(tmp_path)
    )
    engine = Engine(settings)
    engine.warm_up()
    (undivided,) = engine.warm.values()
    assert undivided.stream_count == 1
    graph = undivided.divided()
    assert graph.stream_count == count
    items = [GraphItem(image, [GraphTarget(by_rank(0))]) for image in images()]
    expected = graph.run(items, 4)
    for device in range(1, graph.device_count):
        for ours, other in zip(graph.run(items, 4, device), expected, strict=True):
            np.testing.assert_allclose(ours.maps[0], other.maps[0], rtol=1e-5)
    assert (tmp_path / "compilers.json").exists() is (count > 1)


@pytest.mark.parametrize("manifest_s", [{"1": 1.0, "4": 30.0}, {"1": 1.0, "4": 1.0}])
@pytest.mark.parametrize(("true_ratio", "expected"), [(1.1, 4), (8.0, 1)])
def test_the_costs_of_a_manifest_are_corrected(
    tmp_path: Path, manifest_s: dict[str, float], true_ratio: float, expected: int
) -> None:
    """An export that was made on a busy machine is served in the batches that pay here."""
    folder = tmp_path / "tiny"
    write_tiny_export(folder, 1)
    manifest = json.loads((folder / "gradcam.json").read_text())
    manifest["graphs"][0]["cost_s"] = manifest_s
    (folder / "gradcam.json").write_text(json.dumps(manifest))
    engine = Engine(config(folder, 1))
    engine.warm_up()
    (graph,) = engine.warm.values()
    image_s = graph.expected_s(1)
    assert graph.expected_s(4) == pytest.approx(image_s * manifest_s["4"])
    sizes = []
    for _ in range(60):
        _, size = graph.plan(4)
        graph.ran(size, 0, image_s * (true_ratio if size == 4 else 1))
        sizes.append(size)
    assert sizes[20:].count(expected) > 30
