"""The options of gradcam batch, and its messages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gradcam_server.batch.model import identity
from gradcam_server.cli import batch as module
from gradcam_server.cli import common, main
from gradcam_server.config.settings import ServeConfig
from support.made_rows import MadeStage


def batch(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["batch", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard", "4/4"), "not a share such as 0/4"),
        (("--shard", "x"), "not a share"),
        (("--server", "a:1", "--compiler", "xla"), "--compiler belongs to the server"),
        (("--server", "a:1", "--engine", "ray"), "--engine cannot be combined with --server"),
        (("--ray-address", "auto"), "--ray-address needs --engine ray"),
        (("--model", "resnet50", "--model", "xception"), "a job has one model"),
        (("--top-k", "0"), "not in the range"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    """The error names the option; no folder is made."""
    result = batch(tmp_path, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    """No model is loaded, and no output is written."""
    result = batch(tmp_path, tmp_path / "out")
    assert result.exit_code == 1
    assert "no image in this folder or below it" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("package", "extra"), [("pyarrow", "batch"), ("ray", "ray")])
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    """The error names the extra to install."""
    monkeypatch.setattr(common, "find_spec", lambda name: None if name == package else True)
    (tmp_path / "a.jpg").write_bytes(b"")
    result = batch(tmp_path, tmp_path / "out", "--engine", "ray")
    assert result.exit_code == 1
    assert f"pip install 'gradcam-server[{extra}]'" in result.output


def test_a_job_by_servers_imports_neither_model_nor_decoder() -> None:
    """The client and pyarrow are enough for a job with --server."""
    code = (
        "import sys; import gradcam_server.cli.batch, gradcam_server.batch.job\n"
        "import gradcam_server.batch.sources.opening, gradcam_server.batch.remote\n"
        "print([name for name in ('tensorflow', 'cv2', 'PIL', 'ray') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout == "[]\n", printed.stderr


def test_a_models_identity_is_what_its_files_hold(tmp_path: Path) -> None:
    """Their content counts, not their path, and no option that affects only the speed."""
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / f"{name}.keras").write_bytes(content)

    def of(name: str, **options: object) -> dict[str, object]:
        model = (f"pets={tmp_path}/{name}.keras",)
        return identity(ServeConfig(model=model, **options))  # type: ignore[arg-type]

    assert of("a") == of("b") == of("a", batch_sizes=(8,), worker_threads=1)
    assert of("a") != of("c")
    assert of("a") != of("a", preprocessing=("caffe",))
    assert of("a") != of("a", outputs=("sigmoid",))
    # The option that ends the warning does not make it another job.
    assert of("a") == of("a", preprocessing=("none",))


def test_files_that_are_no_images_are_counted_in_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are left out are counted on stderr and in the manifest, in each run."""
    for name in ("1.jpg", "2.tif", "3.heic", "4.heic", "._1.jpg"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    monkeypatch.setattr(module, "_engine", lambda *_: MadeStage)
    for _ in range(2):
        result = batch(tmp_path / "in", tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert "4 files left out: .heic 2, " in result.stderr
        assert ".tif 1" in result.stderr
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_bytes())
    assert manifest["inputs"]["left_out"] == {".tif": 1, ".heic": 2, "hidden": 1}


def test_a_job_that_is_stopped_says_that_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit status is 130, as after SIGINT."""
    (tmp_path / "1.jpg").write_bytes(b"")

    def interrupted(*_: object) -> MadeStage:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_engine", lambda *_: interrupted)
    result = batch(tmp_path / "1.jpg", tmp_path / "out")
    assert result.exit_code == 130
    assert "the same command goes on where it stopped" in result.stderr


def test_progress_is_a_line_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is written when the job begins, unless --quiet; no bar is drawn into a log."""
    (tmp_path / "1.jpg").write_bytes(b"")
    monkeypatch.setattr(module, "_engine", lambda *_: MadeStage)
    result = batch(tmp_path / "1.jpg", tmp_path / "out")
    assert result.stderr.startswith("Explaining 1 of 1 images\n")
    assert batch(tmp_path / "1.jpg", tmp_path / "quiet", "--quiet").stderr == ""
