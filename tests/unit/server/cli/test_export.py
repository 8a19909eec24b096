"""``gradcam export``: its options."""

from pathlib import Path

from click.testing import CliRunner

from gradcam_server.cli import main


def test_the_methods_of_many_passes_need_xla(tmp_path: Path) -> None:
    """The option is refused before a model is loaded."""
    result = CliRunner().invoke(main, ["export", "--many-pass", "-o", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "--many-pass needs --for xla" in result.output


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    """The error lists the runtimes."""
    result = CliRunner().invoke(main, ["export", "--for", "onnx", "-o", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "'openvino', 'xla'" in result.output
